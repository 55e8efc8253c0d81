"""Compressed pipelines as folders for others: stock diffusers, ONNX graphs, and the card that explains them."""
