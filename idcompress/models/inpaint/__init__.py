"""The inpainting pipeline that diffusers lacks: for U-Nets of any number of latent channels."""

from .pipeline import InpaintPipeline

__all__ = ["InpaintPipeline"]
