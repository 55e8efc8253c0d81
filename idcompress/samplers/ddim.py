"""Deterministic DDIM, first order: the sampler of the paper and of the released code."""

from ..core.ddim import Ddim

SOURCE = "Song et al., Denoising Diffusion Implicit Models, arXiv 2010.02502"
CITATION = """@inproceedings{song2021ddim,
  title     = {Denoising Diffusion Implicit Models},
  author    = {Song, Jiaming and Meng, Chenlin and Ermon, Stefano},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2021},
  note      = {arXiv:2010.02502}
}"""
SAMPLER = Ddim(eta=0.0)
