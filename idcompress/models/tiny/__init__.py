"""The embedded models: small trained diffusion models, one stock diffusers pipeline folder per task."""

from __future__ import annotations

from pathlib import Path


def tiny_folder(task: str) -> Path:
    """Folder of the embedded pipeline of a task, for stock `from_pretrained`.

    Raises:
        LookupError: no embedded model of that name.
    """
    here = Path(__file__).parent
    known = sorted(index.parent.name for index in here.glob("*/model_index.json"))
    if task not in known:
        raise LookupError(f"no embedded model for task '{task}' (model=tiny); there are: {', '.join(known) or 'none'}")
    return here / task
