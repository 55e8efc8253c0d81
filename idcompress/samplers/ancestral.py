"""Ancestral sampling, DDIM at eta 1; an image's noise is the same path whatever the list of timesteps."""

from ..core.ddim import Ddim

SOURCE = "Ho et al., Denoising Diffusion Probabilistic Models, arXiv 2006.11239; arXiv 2010.02502, eq. 16 at eta 1"
SAMPLER = Ddim(eta=1.0)
