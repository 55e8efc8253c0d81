"""DDIM corrected by a few numbers per step, which were fitted to a many-step run of the same model and images."""

from ..core.fit import Fitted

SOURCE = "ours; akin to Shaul et al., Bespoke Non-Stationary Solvers, arXiv 2403.01329"
NEEDS = ("coefficients",)
SAMPLER = Fitted()
