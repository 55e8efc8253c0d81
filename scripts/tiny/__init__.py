"""How the embedded models are trained: a file for each kind of model, and what they share.

The command is `scripts/train_tiny.py`. Needs torch, diffusers, transformers, numpy and Pillow, so that it runs on a
bare machine.
"""
