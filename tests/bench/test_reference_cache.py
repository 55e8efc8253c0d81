"""References kept on disk: a result is served again only where everything that it depends on is the same."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from idcompress import Recipe, registry
from idcompress.bench import references
from idcompress.bench.bench import Bench
from idcompress.core.cut import Cut
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.sources.load import load_source
from idcompress.sources.model import Model
from idcompress.tasks.ip2p import Task
from idcompress.types import Example

IMAGE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
EXAMPLE = Example(0, "0000_cat", "digest", IMAGE, "make it darker")


@pytest.fixture(scope="module")
def model(random_model):
    source = {"name": "random", "path": str(random_model("ip2p"))}
    return load_source("ip2p", source, device="cpu", dtype="float32", prune="depth_skip")


@pytest.fixture
def bench(model, tmp_path, monkeypatch):
    """(examples, settings) -> Bench, whose cache lies in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def make(*examples, task=None, options=None, **settings):
        identity = {"name": "ip2p.1", "options": options or {}}
        return Bench(task or Task(), model, list(examples), {}, identity, **settings)

    return make


def plan_of(timesteps, sampler="ddim", **guidance):
    scales = {"guidance_scale": 2.0, "image_guidance_scale": 1.0} | guidance
    return Plan.over(timesteps, sampler=sampler, guidance=scales)


def cached():
    return {path.name for path in Path(references.CACHE).glob("*")} if Path(references.CACHE).is_dir() else set()


@pytest.fixture
def key_of(bench, monkeypatch):
    """(example, timesteps, recipe, settings, changes) -> what its result is kept under; nothing is computed."""
    monkeypatch.setattr(Bench, "images", lambda self, *arguments: torch.zeros(len(arguments[-1]), 3, 2, 2))

    def key(example=EXAMPLE, timesteps=(500, 0), recipe=None, settings=None, **changes):
        for path in Path(references.CACHE).glob("*"):
            path.unlink()
        bench(example, **settings or {}).references(recipe, plan_of(timesteps, **changes), "")
        (name,) = cached()
        return name

    return key


# A field that nobody thought of.


@dataclasses.dataclass(frozen=True)
class MaskedExample(Example):
    """An example of a task to come, which edits inside a mask alone."""

    mask: torch.Tensor | None = None


class MaskedTask(Task):
    """The mask reaches the network through the latents of the input image."""

    def encode(self, pipeline, examples, seed=0):
        conditioning = super().encode(pipeline, examples, seed)
        masks = torch.stack([example.mask for example in examples])
        return conditioning | {"image": conditioning["image"] * masks}


def masked(value):
    fields = {field.name: getattr(EXAMPLE, field.name) for field in dataclasses.fields(EXAMPLE)}
    return MaskedExample(**fields, mask=torch.full((1, 8, 8), value))


def test_another_mask_is_not_served_the_first_ones_picture(bench):
    found = [bench(masked(v), task=MaskedTask()).references(None, plan_of([700, 0]), "") for v in (0.0, 1.0, 0.0)]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(cached()) == 2
    made = bench(masked(1.0), task=MaskedTask()).images(bench().model.pipeline, plan_of([700, 0]), "")
    assert torch.equal(found[1], made)


# Every field, and everything else.

ANOTHER = {
    "index": 1,
    "name": "0000_dog",
    "photo": "another digest",
    "image": IMAGE.flip(-1),
    "prompt": "make it warmer",
    "target": IMAGE,
    "condition": IMAGE,
    "captions": ("a cat", "a dog"),
    "tags": ("hard",),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Example)])
def test_every_field_of_an_example_is_part_of_the_key(key_of, name):
    """A new field wants an entry above, and no change of the key."""
    assert key_of(dataclasses.replace(EXAMPLE, **{name: ANOTHER[name]})) != key_of(EXAMPLE)


def test_the_same_example_has_the_same_key(key_of):
    """However its tensors lie in memory."""
    copied = IMAGE.permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    assert not copied.is_contiguous()
    assert key_of(dataclasses.replace(EXAMPLE, image=copied)) == key_of(EXAMPLE)


ELSE = [
    {"timesteps": (500, 1)},
    {"timesteps": (500, 500, 0)},
    {"settings": {"seed": 1}},
    {"sampler": "ancestral"},
    {"guidance_scale": 3.0},
    {"image_guidance_scale": 1.5},
    {"settings": {"options": {"colour": 1}}},
]


@pytest.mark.parametrize("change", ELSE, ids=str)
def test_what_else_decides_a_result_is_part_of_the_key(key_of, change):
    assert key_of(**change) != key_of()


def test_depth_and_weights_are_part_of_the_key(key_of, monkeypatch):
    monkeypatch.setattr(Model, "for_recipe", lambda self, recipe: self.pipeline)
    weights = {"unet": {"file": "unet.safetensors", "sha256": "0"}}
    recipes = [
        None,
        Recipe("ip2p", {"name": "random"}, Cut("depth_skip", {"depth": 9})),
        Recipe("ip2p", {"name": "random"}, Cut("depth_skip", {"depth": 8})),
        Recipe("ip2p", {"name": "random"}, Cut("depth_skip", {"depth": 9}), weights),
    ]
    assert len({key_of(recipe=recipe) for recipe in recipes}) == len(recipes)


# Any value that a field may hold.


@dataclasses.dataclass(frozen=True)
class AnyExample(Example):
    extra: object = None


def extra(value):
    return AnyExample(0, "", "", IMAGE, extra=value)


@dataclasses.dataclass
class Box:
    left: int
    mask: object = None


VALUES = [
    None,
    "None",
    "",
    0,
    "0",
    1,
    True,
    1.0,
    float("nan"),
    float("inf"),
    0.1 + 0.2,
    0.3,
    [],
    {},
    [[]],
    ["a", "b"],
    ["ab"],
    [["a"], "b"],
    {"a": "b"},
    {"a": None},
    Box(1),
    Box(2),
    Box(1, torch.zeros(1)),
    {"left": 1, "mask": None},
    torch.zeros(4),
    torch.zeros(2, 2),
    torch.zeros(1, 4),
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(4, dtype=torch.int32),
    torch.zeros(8, dtype=torch.float16),
    torch.zeros(8, dtype=torch.bfloat16),
    torch.zeros(16, dtype=torch.bool),
    torch.ones(4),
    [torch.zeros(2), torch.zeros(2)],
    [torch.zeros(2)],
    {"a": {"b": [torch.zeros(2)]}},
    {"a": {"b": [torch.ones(2)]}},
]


def test_values_of_any_kind_tell_each_other_apart(key_of):
    keys = [key_of(extra(value)) for value in VALUES]
    same = [(a, b) for i, a in enumerate(VALUES) for j, b in enumerate(VALUES) if i < j and keys[i] == keys[j]]
    assert not same
    assert keys == [key_of(extra(value)) for value in VALUES]


def test_the_order_of_a_mapping_does_not_matter(key_of):
    assert key_of(extra({"a": 1, "b": 2})) == key_of(extra({"b": 2, "a": 1}))


@pytest.mark.parametrize(
    ("value", "where", "kind"),
    [
        (object(), "extra", "object"),
        ({1, 2}, "extra", "set"),
        (np.zeros(2), "extra", "ndarray"),
        ({"a": [1, len]}, r"extra\.a\.1", "builtin_function_or_method"),
        (Box(1, {3}), r"extra\.mask", "set"),
        ({1: 2}, "extra", "dict with a key that is no string"),
    ],
)
def test_a_value_without_a_digest_is_an_error_that_names_it(bench, value, where, kind):
    with pytest.raises(IdcError, match=rf"example\.{where} holds a {kind}"):
        bench(extra(value)).references(None, plan_of([0]), "")
    assert not cached()


# What is kept, and for how long.


@pytest.fixture
def counted(bench, monkeypatch):
    """Make references with a counter of the images that were computed; each is the example's own picture."""
    made = []

    def images(self, pipeline, plan, description, positions):
        made.extend(positions)
        return torch.stack([self.examples[position].image for position in positions])

    monkeypatch.setattr(Bench, "images", images)

    def references_of(*examples, **settings):
        made.clear()
        return bench(*examples, **settings).references(None, plan_of([0]), ""), list(made)

    return references_of


@pytest.mark.parametrize("harm", ["shorter", "other bytes", "no safetensors", "an older version"])
def test_a_damaged_entry_is_said_and_computed_again(counted, harm, caplog, monkeypatch):
    monkeypatch.setattr("idcompress.console.log.propagate", True)
    first, _ = counted(EXAMPLE)
    (path,) = Path(references.CACHE).glob("*")
    whole = path.read_bytes()
    if harm == "an older version":
        path.write_bytes(save({"image": IMAGE}))
    else:
        flipped = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes({"shorter": whole[:-100], "other bytes": flipped, "no safetensors": b"{}"}[harm])
    again, computed = counted(EXAMPLE)
    assert computed == [0]
    assert torch.equal(first, again)
    assert ("is damaged; it is computed again" in caplog.text) == (harm != "an older version")
    assert path.read_bytes() == whole
    assert counted(EXAMPLE)[1] == []


def test_the_cache_keeps_to_its_limit_and_lets_the_longest_unused_go(counted):
    one, other, third = (dataclasses.replace(EXAMPLE, index=i, prompt=f"make it {i}") for i in range(3))
    size = 3 * 32 * 32 * 4 + 300  # an image and its header
    for number, example in enumerate((one, other)):
        counted(example)
        newest = max(Path(references.CACHE).glob("*"), key=lambda path: path.stat().st_mtime)
        os.utime(newest, (number + 1, number + 1))
    counted(one)  # used again: now the other one is the longest unused
    assert len(cached()) == 2
    counted(third, cache_gb=2 * size / 1e9)
    assert len(cached()) == 2
    assert [counted(example)[1] for example in (one, third, other)] == [[], [], [0]]
    assert counted(dataclasses.replace(EXAMPLE, prompt="make it blue"), cache_gb=0)[0].shape == (1, 3, 32, 32)
    assert not cached()


def test_no_image_waits_for_the_disk(counted, monkeypatch):
    def fsync(descriptor):
        raise AssertionError("an image waited for the disk")

    monkeypatch.setattr(os, "fsync", fsync)
    assert counted(EXAMPLE)[1] == [0]


# What a bench keeps in memory.


def test_conditioning_is_not_shared_between_seeds(random_model, tmp_path, monkeypatch):
    """StableSR's conditioning holds noise of the seed; a bench with another seed shares what was encoded."""
    monkeypatch.chdir(tmp_path)
    source = {"name": "random", "path": str(random_model("stablesr"))}
    model = load_source("stablesr", source, device="cpu", dtype="float32", prune="depth_skip")
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))

    def fresh(seed):
        examples, task = [Example(0, "", "", image)], registry.load("task", "stablesr").Task()
        return Bench(task, model, examples, {}, seed=seed)

    def images(bench):
        return bench.images(model.pipeline, Plan.over([500, 0]), "")

    first = fresh(0)
    kept = images(first)
    other = dataclasses.replace(first, seed=1)
    assert torch.equal(images(other), images(fresh(1)))
    assert torch.equal(images(first), kept)
