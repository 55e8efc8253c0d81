"""Recipes: round trips, digests, lineage, and one clear line for every damaged form."""

import dataclasses
import json

import pytest

import idcompress
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.errors import IdcError, shown
from idcompress.runs.recipe import VERSION, Recipe

MODEL = {"name": "tiny", "path": None, "repositories": None, "revision": None, "digest": "d" * 64}
GUIDANCE = {"guidance_scale": 4.0}
UNIFORM = Plan.over([999, 666, 333, 0], guidance=GUIDANCE)
FULL = Recipe(task="ip2p", model=MODEL, plan=UNIFORM)
SEARCHED = {"stage": "depth_search", "config_digest": "c" * 64, "seed": 0, "code": "0", "photographs": {"p": "1" * 64}}
TIMED = {"stage": "tsopt", "config_digest": "e" * 64, "seed": 0, "code": "0", "photographs": {"q": "2" * 64}}
CUT = FULL.derive(SEARCHED, cut=Cut("depth_skip", {"depth": 9}))
LISTED = Plan.over([999, 640, 640, 3], guidance=GUIDANCE)
WEIGHTS = {"unet": {"file": "unet.safetensors", "sha256": "f" * 64}}
FAST = CUT.derive(TIMED, plan=LISTED, free_steps=False, weights=WEIGHTS)


@pytest.mark.parametrize("recipe", [FULL, CUT, FAST], ids=["full", "cut", "fast"])
def test_round_trip(tmp_path, recipe):
    path = recipe.save(tmp_path / "run" / "recipe.json")
    loaded = Recipe.load(path)
    assert loaded == recipe
    assert loaded.digest == recipe.digest
    assert loaded.folder == path.parent
    assert Recipe.load(path.parent) == recipe  # the folder stands for its recipe.json
    assert Recipe.load(str(path)) == recipe
    again = loaded.save(tmp_path / "again.json")
    assert again.read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["recipe.json"]


def test_the_public_name():
    assert idcompress.Recipe is Recipe


def test_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.depth = 3


def test_every_field_is_in_the_file_and_the_version_first():
    value = FULL.to_json()
    assert set(value) == {field.name for field in dataclasses.fields(Recipe)} - {"folder"}
    assert next(iter(value.items())) == ("version", VERSION)


def test_the_digest_depends_on_the_value_alone(tmp_path):
    path = FAST.save(tmp_path / "recipe.json")
    shuffled = dict(reversed(json.loads(path.read_text()).items()))
    shuffled["model"] = dict(reversed(shuffled["model"].items()))
    elsewhere = tmp_path / "elsewhere" / "r.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text(json.dumps(shuffled))
    assert Recipe.load(elsewhere).digest == FAST.digest
    assert dataclasses.replace(FAST, folder=tmp_path).digest == FAST.digest
    assert dataclasses.replace(FAST, folder=tmp_path) == FAST


@pytest.mark.parametrize(
    "change",
    [
        {"task": "controlnet"},
        {"model": {**MODEL, "digest": "0"}},
        {"cut": Cut("none", {"depth": 9})},
        {"cut": Cut("depth_skip", {"depth": 8})},
        {"plan": Plan.over([999, 640, 639, 3], guidance=GUIDANCE)},
        {"free_steps": True},
        {"plan": Plan.over([999, 640, 640, 3], guidance={"guidance_scale": 4.5})},
        {"weights": {}},
        {"parent": None},
        {"provenance": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_value_changes_the_digest(change):
    assert dataclasses.replace(FAST, **change).digest != FAST.digest


def test_derived_recipes_know_where_they_come_from():
    assert FULL.parent is None
    assert FULL.stage == ""
    assert FULL.is_full
    assert (CUT.parent, FAST.parent) == (FULL.digest, CUT.digest)
    assert (CUT.stage, FAST.stage) == ("depth_search", "tsopt")
    assert [entry["stage"] for entry in FAST.provenance] == ["depth_search", "tsopt"]
    assert not CUT.is_full
    assert (FAST.depth, FAST.timesteps, FAST.num_inference_steps) == (9, (999, 640, 640, 3), 4)
    assert FAST.searched_photographs() == {"1" * 64, "2" * 64}
    assert FAST.guidance == FULL.guidance
    assert CUT.derive(TIMED).num_inference_steps == CUT.num_inference_steps == 4
    assert CUT.timesteps is None
    assert FULL.derive_model({**MODEL, "digest": "0"}).provenance == ()


def test_a_derived_recipe_leaves_its_parents_folder(tmp_path):
    loaded = Recipe.load(CUT.save(tmp_path / "recipe.json"))
    assert loaded.derive(TIMED, plan=Plan.over([9, 3])).folder is None


def test_weights_that_are_kept_come_along(tmp_path):
    loaded = Recipe.load(FAST.save(tmp_path / "old" / "recipe.json"))
    for entry in FAST.weights.values():
        (tmp_path / "old" / entry["file"]).write_bytes(b"weights")
    saved = loaded.derive(TIMED, plan=Plan.over([9, 3])).save(tmp_path / "new" / "recipe.json")
    for entry in FAST.weights.values():
        assert (saved.parent / entry["file"]).read_bytes() == b"weights"
    assert loaded.derive(TIMED, weights={}).folder is None


DAMAGE = {
    "task": [None, 3, ["ip2p"], "", "../ip2p", "a b", "a" * 5000],
    "model": [
        *(None, "tiny", {}, {"path": "x"}, {"name": 3}, {"name": "a/b"}, {"name": "tiny", "path": 3}),
        *({"name": "tiny", "path": ""}, {"name": "tiny", "path": "a\0b"}, {"name": "tiny", "repositories": "x"}),
        *({"name": "tiny", "repositories": {"pipeline": 3}}, {"name": "tiny", "revision": []}),
    ],
    "cut": [9, "depth_skip", {}, {"depth": 9}, {"method": 3}, {"method": "os"}, {"method": "../depth_skip"}],
    "plan": [
        *([], "999", {}, {"steps": []}, {"steps": [{"timestep": 5}, {"timestep": 6}]}, {"steps": [{"depth": 3}]}),
        *({"steps": [{"timestep": t}]} for t in (-1, True, None, "999", [1])),
        *({"steps": [{"timestep": 5, "depth": depth}]} for depth in (0, 1.5, True, "9")),
        *({"steps": [{"timestep": 5}], "guidance": scales} for scales in ({"batch_size": 3}, {"seed": 1}, [1], None)),
        *({"steps": [{"timestep": 5}], "sampler": name} for name in ("euler", "../ddim", 3, None)),
        {"steps": [{"timestep": 5}] * 1001},
        {"steps": [{"timestep": 5}], "coefficients": [["a"]]},
    ],
    "free_steps": [None, 1, "yes"],
    "weights": [
        *(None, [], {"unet": "unet.safetensors"}, {"unet": {"file": "unet.safetensors"}}),
        *({"unet": {"file": name, "sha256": "f" * 64}} for name in ("../unet.safetensors", "/etc/passwd", "", "..", 3)),
        *({"unet": {"file": "a.safetensors", "sha256": digest}} for digest in ("", "F" * 64, 3, "f" * 63)),
        {"../unet": {"file": "a.safetensors", "sha256": "f" * 64}},
    ],
    "parent": [3, ["x"], "", "x" * 64],
    "provenance": [
        *(None, {}, ["depth_search"], [{"seed": 0}]),
        *(
            [{"stage": "tsopt", name: value}]
            for name, value in {
                "config_digest": 3,
                "seed": "0",
                "options": [],
                "sampler": 3,
                "code": [],
                "photographs": ["p"],
                "strategy": {},
                "depth": "9",
                "files": {"a": 3},
                "base": "tiny",
                "fit": {"key": 3},
                "data": "x",
            }.items()
        ),
    ],
}


@pytest.mark.parametrize(
    ("field", "value"), [pytest.param(f, v, id=f"{f}={shown(v)}") for f, values in DAMAGE.items() for v in values]
)
def test_a_wrong_value_is_one_clear_line(tmp_path, field, value):
    path = FAST.save(tmp_path / "recipe.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(IdcError, match=field) as caught:
        Recipe.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("field", [field for field in FULL.to_json() if field != "version"])
def test_a_missing_field_is_named(tmp_path, field):
    path = FAST.save(tmp_path / "recipe.json")
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))
    with pytest.raises(IdcError, match=f"lacks the field '{field}'"):
        Recipe.load(path)


def test_an_unknown_field_is_named_with_the_nearest(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**FULL.to_json(), "plans": [3]}))
    with pytest.raises(IdcError, match="unknown field 'plans'; did you mean 'plan'"):
        Recipe.load(path)


@pytest.mark.parametrize("version", [None, 0, VERSION + 1, "1"])
def test_another_version_is_refused(tmp_path, version):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**FULL.to_json(), "version": version, "new": 1}))
    with pytest.raises(IdcError, match=f"this program reads {VERSION}"):
        Recipe.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b'{"version": 1}', b"{}"])
def test_a_damaged_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "recipe.json"
    path.write_bytes(content)
    with pytest.raises(IdcError) as caught:
        Recipe.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cut_off_file_is_refused(tmp_path):
    path = FAST.save(tmp_path / "recipe.json")
    data = path.read_bytes().rstrip()
    for end in range(0, len(data), 11):
        path.write_bytes(data[:end])
        with pytest.raises(IdcError):
            Recipe.load(path)


def test_nothing_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(IdcError, match="there is no file"):
            Recipe.load(path)
