"""Deterministic DDIM, first order: the sampler of the paper and of the released code."""

from ..core.ddim import Ddim

SOURCE = "Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502"
SAMPLER = Ddim(eta=0.0)
