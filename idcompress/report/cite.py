"""BibTeX of the methods that a compression used."""

from __future__ import annotations

from .. import registry

PAPER = """@inproceedings{kim2024compression,
  title     = {Diffusion Model Compression for Image-to-Image Translation},
  author    = {Kim, Geonung and Kim, Beomsu and Park, Eunhyeok and Cho, Sunghyun},
  booktitle = {Asian Conference on Computer Vision (ACCV)},
  year      = {2024},
  note      = {arXiv:2401.17547}
}"""


def citations(task: str, sampler: str, strategy: str = "uniform") -> list[str]:
    """BibTeX entries: the compression, the task's model, DDIM, and what else the sampler and the strategy give.

    They stand in the files of task, sampler and strategy as CITATION; names that are not registered have none.
    """
    named = [("task", task), ("sampler", "ddim"), ("sampler", sampler), ("timesteps", strategy)]
    found = [registry.literal(kind, name, "CITATION") for kind, name in named if name in registry.names(kind)]
    return list(dict.fromkeys([PAPER, *(entry for entry in found if entry is not None)]))
