"""A command as Hydra's jobs: one run of its stage each, in this process or wherever a launcher starts it.

Only a command that runs a stage imports this module. What a job changes of the process (its command line, its
environment, its process group) is undone after it, so that the next job of a sweep starts as the first one did.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import __main__

from . import config as configuration
from . import console, registry, sweeps, words
from .errors import IdcError, is_out_of_memory, of_the_system
from .runs import places, timing
from .stages._run import Run, in_processes, is_of_sweep, out_of_memory, start

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Set to 1, Hydra lets exceptions pass; otherwise it prints them itself and ends the process.
_FULL_ERROR = "HYDRA_FULL_ERROR"


@dataclass(frozen=True)
class Program:
    """The program that the user started, as a child process has to start it again.

    Attributes:
        executable: the script that was run.
        main_module: the module that was run by `python -m`, else None.
        flags: the flags about configuration files, with their values.
    """

    executable: str
    main_module: str | None
    flags: Sequence[str]

    @classmethod
    def this_one(cls, flags: Sequence[str]) -> Program:
        spec = getattr(__main__, "__spec__", None)
        return cls(str(Path(sys.argv[0]).resolve()), None if spec is None else spec.name, flags)

    def describe(self, command: str, overrides: Sequence[str], run: Run) -> None:
        """Make sys.argv and `__main__` name this job, with the recipe and the folder that were resolved for it.

        Lightning starts its further processes by repeating sys.argv, or `-m <main module>` with its arguments.
        """
        sys.argv = [
            self.executable,
            command,
            *self.flags,
            *(override for override in overrides if not override.startswith("recipe=")),
            words.override("recipe", run.recipe_argument),
            words.override("hydra.run.dir", str(run.run_dir.path.resolve())),
        ]
        __main__.__spec__ = importlib.util.find_spec(self.main_module) if self.main_module else None


class PackagedConfigs(SearchPathPlugin):  # type: ignore[misc]
    """Keeps our YAML files reachable, last, where --config-path replaces the main folder."""

    def manipulate_search_path(self, search_path: Any) -> None:
        search_path.append("idcompress", f"file://{configuration.conf_dir()}")


def run(command: str, arguments: Sequence[str], flags: Sequence[str]) -> None:
    """Compose the configuration and run the command's stage, once or once per job of a sweep, which ends with a table.

    Args:
        arguments: for Hydra, flags first.
        flags: those among them that are about configuration files, with their values.

    Raises:
        IdcError: the configuration does not compose, or jobs failed by a mistake of the user.
    """
    own = command.replace("-", "_")
    chosen = any(re.match(r"\+*command=", argument) for argument in arguments)  # by the process that started this one
    if not chosen and (configuration.conf_dir() / "command" / f"{own}.yaml").is_file():
        arguments = [*arguments, f"command={own}"]
    configuration.register()
    Plugins.instance().register(PackagedConfigs)
    failures: list[IdcError] = []
    task = functools.partial(run_job, command=command, program=Program.this_one(flags), failures=failures)
    # Hydra wants these of a task and names its jobs after the module, which users know as the command line.
    task.__module__, task.__name__ = "idcompress.cli", command  # type: ignore[attr-defined]
    sweeps.SweepFolder.begun = None
    shown = _configuration_as_typed() if _shows_configuration(arguments) else nullcontext()
    with _command_line([f"idc {command}", *arguments]), shown, _exceptions_pass() as user_wants_traceback:
        try:
            hydra.main(config_path=str(configuration.conf_dir()), config_name="config", version_base="1.3")(task)()
        except sweeps.SweepRefusedError as refusal:
            raise IdcError(str(refusal)) from None
        except (HydraException, OmegaConfBaseException) as error:
            if user_wants_traceback:
                raise
            raise IdcError(_explained(error, arguments)) from None
        except (ValueError, RecursionError) as error:
            _refuse_values_of_groups(error, arguments)
            raise
        except Exception as error:
            lost = sweeps.lost_job(error)
            if lost is None:
                raise
            failures.append(lost)
    sweep = sweeps.SweepFolder.begun
    if sweep is not None:
        failures += [*sweep.failures(), *_table(sweep, flags)]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise IdcError("; ".join(str(error) for error in failures))


def run_job(composed: DictConfig, *, command: str, program: Program, failures: list[IdcError]) -> None:
    """One job, in whatever process a launcher chose for it.

    A user's mistake is noted, in `failures` or beside the sweep's other jobs: those still run, and Hydra prints no
    traceback.
    """
    job = HydraConfig.get()
    try:
        with _process_as_it_was():
            run = start(command.replace("-", "_"), composed, job)
            if run.run_dir.finished:
                return
            # A prompt may hold ${...}.
            overrides = list(map(str, OmegaConf.to_container(job.overrides.task, resolve=False) or ()))
            if is_of_sweep(job):
                run.run_dir.info["words"] = overrides
            program.describe(command, overrides, run)
            execute(command, run)
    except IdcError as error:
        if is_of_sweep(job):
            sweeps.note_failure(job, str(error))
        else:
            failures.append(error)
    except OSError as error:
        if not is_of_sweep(job):
            raise
        sweeps.note_failure(job, of_the_system(error))


def _table(sweep: sweeps.Sweep, flags: Sequence[str]) -> list[IdcError]:
    """Lay out what a sweep has evaluated since its last table; why that was not possible, if it was not."""
    if not sweep.wants_table():
        return []
    table = {"runs": sweep.folder, "recipe": "none", "hydra.run.dir": sweep.folder / sweeps.TABLE}
    try:
        run("compare", [*flags, *(words.override(key, str(value)) for key, value in table.items())], flags)
    except IdcError as error:
        return [error]
    return []


def execute(command: str, run: Run) -> None:
    """Run the stage; a mistake that was found before any work leaves no folder, an interrupted run one to go on in."""
    stage = registry.load("command", command.replace("-", "_"))
    try:
        with (
            timing.record() as seconds,
            console.heartbeat(timing.running),
            in_processes(stage, run.config, run.recipes, run.run_dir) as (config, recipes),
        ):
            made = stage.run(config, recipes, run.run_dir)
    except IdcError:
        run.run_dir.discard_if_empty()
        raise
    except BaseException as error:  # interrupted, say: the same command in this process may go on
        run.run_dir.release()
        if is_out_of_memory(error):
            raise out_of_memory(error, command, run.config) from None
        raise
    run.finish(made, seconds)


def _refuse_values_of_groups(error: ValueError | RecursionError, arguments: Sequence[str]) -> None:
    """Raise IdcError for what Hydra's own parts raise plain errors for: values that no group and no number can have."""
    if str(error).startswith("Only one of --run"):
        raise IdcError(str(error)) from None
    if str(error).startswith("Config group override"):
        groups = [path.name for path in configuration.conf_dir().iterdir() if path.is_dir()]
        wrong = next((a for a in arguments if a.partition("=")[0].lstrip("+") in groups), "a group")
        raise IdcError(f"{wrong}: want one of its names, see idc ls; null, numbers and true are none") from None
    if "integer string conversion" in str(error) or isinstance(error, RecursionError):
        longest = max(arguments, key=len)
        raise IdcError(f"{longest.partition('=')[0]}: no value is that long; got {len(longest):,} characters") from None


def _explained(error: HydraException | OmegaConfBaseException, arguments: Sequence[str]) -> str:
    """What Hydra does not accept, in words of this program's where its own are those of its grammar."""
    message = configuration.one_line(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, arguments)
    several = re.match(r"Ambiguous value for argument '(.*)' 1\. To use it as a list", message, re.DOTALL)
    if several:
        key, _, value = several[1].partition("=")
        text = words.for_the_shell(key, value)
        return (
            f"{several[1]}: these are several values; a list is {key}=[{value}], one text is {text}, a sweep wants -m"
        )
    return message + configuration.suggest(message, _all_keys)


def _unreadable(override: str, arguments: Sequence[str]) -> str:
    """Why a word cannot be read, and how its value is written as a text."""
    key, equals, value = override.partition("=")
    if not re.fullmatch(r"[+~]{0,2}[\w./@-]+", key):
        return f"{override!r} is no key=value"
    if equals:
        name = key.lstrip("+~")
        near = "" if "/" in name else configuration.suggest(f"Could not override '{name}'", _all_keys)
        return (
            f"the value of {override} cannot be read; as a text it is written {words.for_the_shell(key, value)}{near}"
        )
    at = list(arguments).index(override) if override in arguments else 0
    before = arguments[at - 1] if at and "=" in arguments[at - 1] else "key=value"
    whole = shlex.quote(" ".join([before, *itertools.takewhile(lambda word: "=" not in word, arguments[at:])]))
    return f"{override!r} is no key=value; a value with spaces is one word of the shell, in quotes like {whole}"


def _shows_configuration(arguments: Sequence[str]) -> bool:
    read = get_args_parser().parse_known_intermixed_args(list(arguments))[0]
    return read.cfg in ("job", "all")


@contextmanager
def _configuration_as_typed() -> Iterator[None]:
    """Let what `--cfg` prints be the text that the user typed."""
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            yield
    finally:
        ascii_only = not console.knows_every_letter(sys.stdout)
        sys.stdout.write(configuration.as_text(shown.getvalue(), ascii_only=ascii_only))


@contextmanager
def _command_line(argv: list[str]) -> Iterator[None]:
    """Replace sys.argv, which Hydra reads, for the time being."""
    old, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = old


@contextmanager
def _exceptions_pass() -> Iterator[bool]:
    """Let exceptions pass through Hydra for the time being; gives whether the user had asked for tracebacks already."""
    wanted = os.environ.get(_FULL_ERROR) == "1"
    os.environ[_FULL_ERROR] = "1"
    try:
        yield wanted
    finally:
        if not wanted:
            os.environ.pop(_FULL_ERROR, None)


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    """Give a job the environment of the user, and undo afterwards what the job or Lightning changed of the process."""
    argv, spec, wanted = sys.argv, getattr(__main__, "__spec__", None), os.environ.pop(_FULL_ERROR, None)
    try:
        with places.places_as_they_were():
            yield
    finally:
        sys.argv, __main__.__spec__ = argv, spec
        os.environ.pop(_FULL_ERROR, None)
        if wanted is not None:
            os.environ[_FULL_ERROR] = wanted


def _all_keys() -> list[str]:
    """Every key of the default configuration, for suggestions."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configuration.conf_dir()), version_base="1.3"):
        composed = compose("config")
    return [*configuration.known_keys(composed), "hydra.run.dir", "hydra.sweep.dir"]
