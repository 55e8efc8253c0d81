"""Generated overrides and files, in this process: nothing ends in a traceback, a hang or a silently wrong value.

A run is stopped where it would load a model, so that what is tried is all that comes before.
"""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict

from idcompress import cli
from idcompress import config as configuration
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.limits import RANGES
from idcompress.runs import files
from idcompress.runs.recipe import Recipe
from idcompress.runs.run_dir import read_info
from idcompress.runs.trace import Trace
from idcompress.stages import _values

ONCE = (Phase.generate,)  # a failing example is shown as it is: to make it smaller would take minutes
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
RECIPES, TRACES, VALUES, COMMANDS = 560, 280, 130, 30  # 1,000 examples

NUMBERS = st.sampled_from([0, -1, 1, 2, 2.5, 10**6, 10**30, math.nan, math.inf, -math.inf, True, None])
WORDS = st.sampled_from(["", "x", "null", "..", "/", "/dev/null", "a" * 3000, "é", "\u2028", "${a}", "???", "<b>"])
LEAVES = st.one_of(NUMBERS, WORDS, st.text(max_size=5))
VALUES_OF_ANY_KIND = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def one_line(error: BaseException) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 6000


# Files that a stranger may have written -------------------------------------------------------------------------------

PLAN = Plan.over([999, 640, 3], guidance={"guidance_scale": 2.0})
MODEL = {"name": "tiny", "path": None, "repositories": None, "revision": None, "digest": "d" * 64}
ROW = {"stage": "tsopt", "config_digest": "e" * 64, "seed": 0, "code": "0", "photographs": {"p": "1" * 64}}
WEIGHTS = {"unet": {"file": "unet.safetensors", "sha256": "f" * 64}}
RECIPE = Recipe(
    "ip2p", MODEL, Cut("depth_skip", {"depth": 9}), weights=WEIGHTS, plan=PLAN, free_steps=False, provenance=(ROW,)
).to_json()


def places(value: object) -> list[tuple[object, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, child in inside for rest in places(child))]


def put(value, place, new):
    """The JSON value with another one at a place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = put(copy[place[0]], place[1:], new)
    return copy


@settings(max_examples=RECIPES, deadline=2000, derandomize=True, phases=ONCE, suppress_health_check=QUIET)
@given(place=st.sampled_from(places(RECIPE)), new=VALUES_OF_ANY_KIND, cut=st.none() | st.integers(0, 1500))
def test_a_recipe_loads_whole_or_ends_in_one_line(tmp_path, place, new, cut):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(put(RECIPE, place, new))[:cut])
    try:
        recipe = Recipe.load(path)
    except IdcError as error:
        one_line(error)
        assert str(path) in str(error)
        return
    assert all(step.timestep >= 0 for step in recipe.plan.steps) if recipe.plan else True
    assert Recipe.load(recipe.save(tmp_path / "again.json")) == recipe
    assert not any("/" in entry["file"] for entry in recipe.weights.values())


@settings(max_examples=TRACES, deadline=2000, derandomize=True, phases=ONCE, suppress_health_check=QUIET)
@given(data=st.binary(max_size=60) | VALUES_OF_ANY_KIND.map(lambda value: json.dumps(value).encode()))
def test_other_bytes_in_files_of_a_run(tmp_path, data):
    for name, read in (
        ("run.json", lambda path: read_info(path.parent)),
        ("trace.jsonl", lambda path: Trace(path).rows),
        ("metrics.json", lambda path: files.read_json(path, "evaluation")),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            read(path)
        except IdcError as error:
            one_line(error)
            assert name in str(error)
        assert path.read_bytes() == data


# The configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed():
    """The default configuration, composed once."""
    configuration.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(configuration.conf_dir()), version_base="1.3"):
        return compose("config", return_hydra_config=False)


KEYS = sorted(
    {*RANGES, "image", "data.path", "recipe", "compress.stages", "evaluate.metrics", "metrics.lpips", "prune.name"}
    | {"depth_search.thresholds", "depth_search.fallbacks", "tsopt.num_inference_steps", "plan.macs", "plan.depths"}
    | {"trainer.devices", "trainer.accelerator", "trainer.strategy", "finetune.metrics", "finetune.optimizer", "dtype"}
)


@settings(max_examples=VALUES, deadline=4000, derandomize=True, phases=ONCE, suppress_health_check=QUIET)
@given(key=st.sampled_from(KEYS), value=VALUES_OF_ANY_KIND)
def test_a_value_is_taken_in_its_range_or_refused_in_one_line(composed, key, value):
    changed = composed.copy()
    try:
        with open_dict(changed):
            OmegaConf.update(changed, key, value, force_add=True)
    except Exception:  # OmegaConf itself does not take it, which Hydra says
        return
    try:
        config = configuration.to_config(changed)
    except IdcError as error:
        one_line(error)
        return
    node = config
    for part in key.split("."):
        node = node[part] if isinstance(node, dict) else getattr(node, part)
    if key in RANGES:
        assert RANGES[key].holds(node), f"{key}={node!r} was taken"


# The command line -----------------------------------------------------------------------------------------------------


class LoadingError(Exception):
    """A model would be loaded now."""


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """Run a command line up to where a model is loaded: (exit code or "loading", what it wrote to stderr)."""

    def loading(*_arguments, **_settings):
        raise LoadingError

    monkeypatch.chdir(tmp_path)
    for name in ("load_source", "shared_model"):
        monkeypatch.setattr(_values, name, loading)

    def run(*arguments):
        err = io.StringIO()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(err):
                cli.main(list(arguments))
        except SystemExit as stop:
            return stop.code, err.getvalue()
        except LoadingError:
            return "loading", ""
        return 0, err.getvalue()

    return run


GROUPS = ("task", "model", "data", "prune", "timesteps", "study", "compare", "loss")
OVERRIDES = st.one_of(
    st.builds("{}={}".format, st.sampled_from([*KEYS, *GROUPS]), st.sampled_from(["null", "5", "true", "nan", "[1]"])),
    st.builds("{}={}".format, st.sampled_from(KEYS), st.sampled_from(["{a:1}", "-1", "1e999", "", "1" * 5000])),
    st.builds("{}{}=1".format, st.sampled_from(["+", "++", "~", "-", "--"]), st.text("abc.@/", min_size=1, max_size=6)),
    st.text(min_size=1, max_size=8),
)


@settings(max_examples=COMMANDS, deadline=None, derandomize=True, phases=ONCE, suppress_health_check=QUIET)
@given(command=st.sampled_from(["tsopt", "depth-search", "finetune", "translate", "plan"]), override=OVERRIDES)
def test_a_command_line_ends_in_one_line(in_process, command, override):
    code, err = in_process(command, override)
    assert code in (0, 2, "loading"), (code, err)
    if code == 2:
        lines = [line for line in err.splitlines() if line.startswith(("idc: error:", "usage:"))]
        assert lines and "Traceback" not in err and len(err) < 6000
        assert len(list(Path.cwd().iterdir())) <= 1, "a mistake left something behind"
