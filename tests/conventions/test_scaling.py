"""docs/scaling.md, line by line, as far as no cluster is needed."""

import importlib.util
import itertools
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from idcompress import cli, config

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
LINES = re.findall(r"(?<![\w'.])idc [^'\n]+", SHELL)
RAY = (
    importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") if importlib.util.find_spec("hydra_plugins") else None
)


@pytest.fixture(scope="module", autouse=True)
def hydra():
    config.register()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        yield


def launcher_of(words):
    return next((word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")), "basic")


def jobs(line):
    """The overrides of each job of a line, Hydra's own included."""
    program, command, *words = shlex.split(line)
    assert program == "idc" and command in cli.commands()
    if launcher_of(words) == "ray" and RAY is None:
        words = [word for word in words if not re.match(r"\+?hydra[./]launcher", word)]
    overrides = OverridesParser.create().parse_overrides([word for word in words if word != "-m"])
    swept = [list(o.sweep_string_iterator()) if o.is_sweep_override() else [None] for o in overrides]
    assert ("-m" in words) == any(len(values) > 1 for values in swept), line
    for values in itertools.product(*swept):
        yield [
            o.input_line if value is None else f"{o.key_or_group}={value}"
            for o, value in zip(overrides, values, strict=True)
        ]


def test_the_page_shows_every_launcher():
    assert {launcher_of(shlex.split(line)) for line in LINES} == {
        "basic",
        "joblib",
        "submitit_local",
        "submitit_slurm",
        "ray",
    }


@pytest.mark.parametrize("line", LINES)
def test_every_line_composes(line):
    first, *_, last = [*jobs(line)] * 2
    for overrides in (first, last) if first != last else (first,):
        composed = compose("config", overrides=overrides, return_hydra_config=True)
        with open_dict(composed):
            del composed["hydra"]
        config.to_config(composed)


SLURM = [line for line in LINES if launcher_of(shlex.split(line)) == "submitit_slurm"]
WANTED = [
    ("partition=gpu", "gpus-per-node=1", "cpus-per-task=8", "mem=32GB", "time=240"),
    ("gpus-per-node=8", "ntasks-per-node=1", "cpus-per-task=64", "time=1440"),
]


@pytest.mark.parametrize(("line", "wanted"), zip(SLURM, WANTED, strict=True))
def test_what_slurm_would_be_handed(line, wanted, tmp_path, monkeypatch):
    """The options go the launcher's way into submitit, which refuses unknown ones, and into the file for sbatch."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 2)  # as where there is an srun
    files = []

    def submit(executor, function, *lists):
        slurm = executor._executor
        slurm._internal_update_parameters(array_parallelism=16)
        files.append(slurm._make_submission_file_text("command", "1"))
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submit)
    overrides = next(jobs(line))
    composed = compose("config", overrides=[*overrides, f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
    params = {key: value for key, value in composed.hydra.launcher.items() if key != "_target_"}
    launcher = SlurmLauncher(**params | {"submitit_folder": str(tmp_path / "%j"), "name": "idc"})
    launcher.config = composed
    launcher.launch([overrides], 0)
    (text,) = files
    for option in wanted:
        assert f"#SBATCH --{option}" in text, text
    assert "srun" in text
