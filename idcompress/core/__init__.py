"""The algorithms: pure functions of tensors and numbers, without I/O, configuration or diffusers."""
