"""Which process of a distributed run this one is, by the environment variables of torchrun, Slurm and Lightning."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PLACES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
_DISTRIBUTED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_main_process() -> bool:
    """Whether this is the process that writes: every one but the further ranks of a distributed run."""
    return all(os.environ.get(name, "0") == "0" for name in _PLACES)


def started_by_a_cluster() -> bool:
    """Whether torchrun or srun has started all processes of a run, and told each its place."""
    return "TORCHELASTIC_RUN_ID" in os.environ or _is_one_of_slurm()


def place_by_slurm(processes: int) -> None:
    """Give a process of a distributed run that srun started its place, where others look for it."""
    if processes > 1 and _is_one_of_slurm() and "SLURM_PROCID" in os.environ:
        os.environ.setdefault("NODE_RANK", os.environ.get("SLURM_NODEID", "0"))
        os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))


def _is_one_of_slurm() -> bool:
    """Whether srun has started several tasks."""
    return int(os.environ.get("SLURM_NTASKS") or 1) > 1


@contextmanager
def places_as_they_were() -> Iterator[None]:
    """Undo afterwards what a distributed run leaves in this process: its environment, its process group."""
    before = {name: os.environ[name] for name in _DISTRIBUTED if name in os.environ}
    try:
        yield
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
        for name in _DISTRIBUTED:
            os.environ.pop(name, None)
        os.environ.update(before)
