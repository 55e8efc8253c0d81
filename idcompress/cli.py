"""`idc <command> [key=value ...]`: from the words on the command line to a command, and to Hydra's arguments.

A command is a file in stages/; its help text is conf/hydra/help/<command>.yaml. Everything after the command is
Hydra's, which `launch` runs. Nothing heavy is imported before a command is known, and torch not before its stage runs.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from . import __version__, console, registry, words
from .errors import IdcError, did_you_mean, of_the_system

ALIASES = {"timestep-search": "tsopt"}
# Commands that run no stage and leave no run folder.
_WITHOUT_STAGE = {
    "ls": "List the tasks, models, strategies, samplers, metrics and data sets, a line each",
    "cache": "Show what is kept below outputs/cache, or empty it (clear=true)",
}
# The flags that name configuration folders, and with them those that name one of their files.
_FOLDER_FLAGS = ("-cp", "--config-path", "-cd", "--config-dir")
_CONFIG_FLAGS = (*_FOLDER_FLAGS, "-cn", "--config-name")


def commands() -> list[str]:
    """Command words: the files of stages/, with dashes."""
    return [name.replace("_", "-") for name in registry.names("command")] + list(_WITHOUT_STAGE)


def usage() -> str:
    stages = [name for name in commands() if name not in _WITHOUT_STAGE]
    rows = {name: registry.summary("command", name.replace("-", "_")) for name in stages} | _WITHOUT_STAGE
    width = max(map(len, rows))
    return "\n".join(
        [
            "usage: idc <command> [key=value ...] [hydra flags]",
            "",
            "Makes an image-to-image diffusion model small and fast for its task, as a plain diffusers model.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {text}" for name, text in rows.items()),
            "",
            "  idc <command> --help       what it does, its keys, examples",
            "  idc <command> --cfg job    the whole configuration it would run with",
            "  idc <command> -m a=1,2     a sweep over values; hydra.sweep.dir=FOLDER ends it with a table",
            "  idc -sc install=bash       shell completion (bash, zsh, fish)",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script; exit codes: 0 done, 1 a fault of the program, 2 a mistake of the user."""
    console.suit_terminal()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if "-sc" in arguments or any(a.startswith("--shell-completion") for a in arguments):
            return _completion(arguments)
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            sys.exit(0 if arguments else 2)
        _working_folder()
        if arguments[0] == "--version":
            return print(f"idc {__version__}")
        command = ALIASES.get(arguments[0], arguments[0])
        if command not in commands():
            fail(f"there is no command {command!r}{did_you_mean(command, [*commands(), *ALIASES])}")
        if command == "ls":
            return _ls(arguments[1:])
        if command == "cache":
            return _cache(arguments[1:])
        with _stopped_by_signals():
            run_command(command, arguments[1:])
        sys.stdout.flush()  # here a full device is one line; at the end of the process it is a traceback
    except IdcError as error:
        fail(str(error), error.code)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        fail(of_the_system(error))
    except TerminatedError as stop:
        fail(str(stop), code=128 + signal.SIGTERM)
    except KeyboardInterrupt as stop:
        fail(str(stop) or "interrupted; the same command continues where it stopped", code=130)


def fail(message: str, code: int = 2) -> NoReturn:
    with suppress(OSError):  # stderr may be on the disk that is full
        print(f"idc: error: {_in_short(message)}", file=sys.stderr)
    sys.exit(code)


def _in_short(message: str) -> str:
    """One line, in which no word and no text is echoed at a length that nobody reads."""
    words = (w if len(w) <= 500 else f"{w[:200]}...({len(w):,} characters)...{w[-40:]}" for w in message.split())
    line = " ".join(words)
    return line if len(line) <= 4000 else f"{line[:2500]} ...({len(line):,} characters)... {line[-800:]}"


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM, as a scheduler sends it, end a command the way Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> NoReturn:
        raise TerminatedError("terminated; the same command continues where it stopped")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came."""


def _working_folder() -> None:
    """Raise IdcError where the folder that the command was started in is gone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise IdcError("the working folder was deleted; change to one that is there") from None


def run_command(command: str, arguments: list[str]) -> None:
    """Run a stage by the words that follow its command: overrides and Hydra's flags, in any order."""
    arguments = _absolute_folders(_two_words(arguments))
    flags, overrides, sweep = _flags_first(arguments)
    from .config import text_of  # which loads Hydra

    if not sweep and any(re.match(r"\+*hydra\.sweep\.", word) for word in overrides):
        raise IdcError("hydra.sweep.dir and hydra.sweep.subdir are of sweeps; give -m, or hydra.run.dir=FOLDER")
    given = [words.read(word, text_of, sweep=sweep) for word in overrides]
    brought = [words.override(key, value) for key, value in _follow_recipe(given).items()]
    hydras = [*flags, *(word.hydra for word in given), *brought, f"hydra/help={command.replace('-', '_')}"]
    from . import launch

    launch.run(command, hydras, _config_flags(arguments))


# From the words on the command line to Hydra's arguments --------------------------------------------------------------


def _flags_first(arguments: list[str]) -> tuple[list[str], list[str], bool]:
    """Hydra's flags, the overrides, and whether they are a sweep.

    Hydra's own parser rejects `a=1 -m b=2`, which users write.
    """
    from hydra._internal.utils import get_args_parser

    read = get_args_parser().parse_known_intermixed_args(arguments)[0]
    overrides = list(read.overrides)
    flags = list(arguments)
    for override in overrides:
        flags.remove(override)
    return flags, overrides, read.multirun or "hydra.mode=MULTIRUN" in overrides


def _follow_recipe(overrides: list[words.Word]) -> dict[str, str]:
    """`recipe=FILE` brings its task and model along: they become overrides, before Hydra composes.

    So does `model.path=FOLDER` of an exported folder, with its task and its model's name where none are given.
    """
    from .runs.recipe import Recipe
    from .runs.run_dir import recipes_of

    given = {word.key: word.values for word in overrides if "=" in word.hydra}
    several = {key for key, values in given.items() if len(values) != 1}
    if "recipe" in several:
        return {}
    path = given.get("recipe", ("latest",))[0]
    if path in ("latest", "none", "", None):
        folder = None if "model.path" in several else given.get("model.path", (None,))[0]
        exported = Recipe.of_folder(str(folder)) if folder else None
        kept = {} if exported is None else {"task": exported.task, "model": str(exported.model["name"])}
        return {key: value for key, value in kept.items() if key not in given}
    recipe = Recipe.load(next(iter(recipes_of(Path(str(path)))), str(path)))
    brought = {"task": recipe.task, "model": recipe.model["name"]}
    if recipe.model.get("given_path"):
        brought["model.path"] = recipe.model["given_path"]
    for key, value in brought.items():
        if key in given and given[key] != (value,):
            wrong = ",".join(map(str, given[key]))
            raise IdcError(f"{key}={wrong} contradicts recipe={path}, which is for {key}={value}; drop one of them")
    return {key: value for key, value in brought.items() if key not in given}


def _two_words(arguments: list[str]) -> list[str]:
    """`--config-dir=FOLDER` and its like as `--config-dir FOLDER`."""
    return [word for a in arguments for word in (a.split("=", 1) if a.partition("=")[0] in _CONFIG_FLAGS else [a])]


def _config_flags(arguments: list[str]) -> list[str]:
    """The flags about configuration files with their values, to be repeated for child processes."""
    return [x for i, a in enumerate(arguments) if a in _CONFIG_FLAGS for x in arguments[i : i + 2]]


def _absolute_folders(arguments: list[str]) -> list[str]:
    """Hydra would take a relative --config-path as relative to this module."""
    folders = {i + 1 for i, a in enumerate(arguments) if a in _FOLDER_FLAGS and i + 1 < len(arguments)}
    missing = [arguments[i] for i in folders if not Path(arguments[i]).is_dir()]
    if missing:
        raise IdcError(f"the configuration folder {missing[0]} does not exist")
    return [str(Path(a).resolve()) if i in folders else a for i, a in enumerate(arguments)]


# Commands that run no stage -------------------------------------------------------------------------------------------


def _completion(arguments: list[str]) -> None:
    """Shell completion: the command word is ours, the rest is Hydra's."""
    flag = "-sc" if "-sc" in arguments else next(a for a in arguments if a.startswith("--shell-completion"))
    after = arguments[arguments.index(flag) + 1 :]
    action = flag.partition("=")[2] or (after[0] if after else "")
    if not re.fullmatch(r"(install|uninstall|query)=(bash|zsh|fish)", action):
        raise IdcError(f"{flag} wants install=SHELL or uninstall=SHELL, with bash, zsh or fish, got {action!r}")
    command, folders = commands()[0], list[str]()
    if action.startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        words = line.split()
        done = words[1:] if line.endswith(" ") else words[1:-1]
        word = next((w for w in done if not w.startswith("-")), None)
        if word is None:
            print(("\n" if action == "query=fish" else " ").join([*commands(), *ALIASES, "--help", "--version"]))
            return
        command, folders = ALIASES.get(word, word), _config_flags(_two_words(done))
        os.environ["COMP_LINE"] = f"idc {line.split(word, 1)[1].lstrip()}"
    if command in commands() and command not in _WITHOUT_STAGE:
        run_command(command, [*folders, "-sc", action])


def _ls(arguments: list[str]) -> None:
    """`idc ls [kind]`: what is registered."""
    from .config import conf_dir

    def models() -> list[tuple[str, str]]:
        rows = []
        for path in sorted((conf_dir() / "model").glob("*.yaml")):
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            rows.append((path.stem, first.lstrip("# ").rstrip(".")))
        return rows

    kinds = {
        "tasks": "task",
        "strategies": "timesteps",
        "samplers": "sampler",
        "pruning": "prune",
        "metrics": "metric",
        "data": "data",
        "studies": "study",
    }
    wanted = arguments or [*kinds, "models"]
    for heading in wanted:
        if heading not in (*kinds, "models"):
            raise IdcError(f"idc ls knows no {heading!r}{did_you_mean(heading, [*kinds, 'models'])}")
        rows = (
            models()
            if heading == "models"
            else [(name, registry.summary(kinds[heading], name)) for name in registry.names(kinds[heading])]
        )
        print(f"{heading}:")
        for name, text in rows:
            print(f"  {name:<24} {text}")


_CACHE_HELP = """idc cache: show what is kept below outputs/cache of this folder, or empty it.

  idc cache                what is kept, and how large it is
  idc cache clear=true     remove it; what is needed again is computed again
  idc cache clear=false    the first again, for scripts
  idc compress cache_gb=2  keep no more than so much, in this run and before it

references holds the results that others are compared with. cache_gb, a key of every command, limits it: those that were
used longest ago go first. inception holds the features of real images, shards the index of a data set."""


def _cache(arguments: list[str]) -> None:
    """`idc cache [clear=true]`."""
    from .runs import cache

    if arguments in (["--help"], ["-h"]):
        print(_CACHE_HELP)
    elif arguments == ["clear=true"]:
        print(f"removed {cache.clear() / cache.GB:.2f} GB from {cache.CACHE}")
    elif arguments in ([], ["clear=false"]):
        found = cache.contents()
        print(f"{cache.CACHE}: {sum(size for _, size in found.values()) / cache.GB:.2f} GB")
        for name, (number, size) in found.items():
            print(f"  {name:<12} {number:>8} entries  {size / cache.GB:.2f} GB")
    else:
        raise IdcError(f"idc cache takes clear=true or nothing, got {' '.join(arguments)}")


if __name__ == "__main__":
    main()
