"""Where diffusers, transformers and Lightning are called."""
