"""Convert original checkpoints of a published model into a diffusers folder"""

from __future__ import annotations

from pathlib import Path

from ..config import Config
from ..console import say
from ..errors import IdcError
from ..runs.outputs import whole_folder
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ._run import show
from ._values import make_task


def run(config: Config, recipes: list[Recipe], run_dir: RunDir) -> list[Recipe]:
    """Write the folder output.path, whole or not at all. No recipe is made.

    Raises:
        IdcError: a file is missing, or not what its key asks for; or there is something in output.path.
    """
    main_ckpt = _file("convert.main_ckpt", config.convert.main_ckpt)
    cfw_ckpt = _file("convert.cfw_ckpt", config.convert.cfw_ckpt)
    arguments = None if config.convert.config is None else _file("convert.config", config.convert.config)
    if config.output.path is None:
        raise IdcError("convert wants output.path=FOLDER, a new or empty folder")
    folder = Path(config.output.path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise IdcError(f"output.path={folder} exists and is not an empty folder; choose another, or remove it")
    with whole_folder(folder, "output.path") as partial:
        make_task(config, config.task.name).convert(main_ckpt, cfw_ckpt, partial, arguments)
    say(f"converted: {show(folder)}; use it by task={config.task.name} model=official model.path={folder}")
    return []


def _file(key: str, value: str | None) -> Path:
    if value is None:
        raise IdcError(f"convert wants {key}=FILE")
    if not Path(value).is_file():
        raise IdcError(f"{key}={value}: no such file")
    return Path(value)
