"""From a data set to the examples of a stage: splits, provenance, pairs with their results and captions."""

import json

import numpy as np
import pytest
import torch
from conftest import colour, put
from PIL import Image

from idcompress import config as configuration
from idcompress import registry
from idcompress.bench.selection import choose_photographs
from idcompress.errors import IdcError
from idcompress.images.photo_sets import Photograph, digests_of, without
from idcompress.runs.recipe import Recipe
from idcompress.stages._values import data_of


def make_config(**data):
    task = configuration.TaskConfig(name="ip2p", version=1, models={})
    model = configuration.ModelConfig(name="tiny")
    return configuration.Config(task, model, {}, {}, data=configuration.DataConfig(**data))


def recipe(*seen):
    """One whose search has seen photographs."""
    stage = {"stage": "depth_search", "photographs": {photo.name: photo.digest for photo in seen}}
    return Recipe(task="ip2p", model={"name": "tiny"}, provenance=(stage,) if seen else ())


@pytest.fixture
def folder(tmp_path):
    for i in range(7):
        put(tmp_path / f"{i}.jpg", 30 * i)
    return tmp_path


def names(found):
    return [photo.name for photo in found]


def test_evaluation_takes_what_no_search_has_seen(folder):
    config = make_config(path=str(folder))
    searched = choose_photographs(data_of(config), recipe(), "search", 2)
    assert names(searched) == ["0", "2", "4", "6"]
    assert names(choose_photographs(data_of(config), recipe(), "train")) == ["0", "2", "4", "6"]
    assert names(choose_photographs(data_of(config), recipe(), "evaluate", 2)) == list("0123456")
    assert names(choose_photographs(data_of(config), recipe(*searched[:2]), "evaluate", 2)) == list("13456")
    everything = choose_photographs(data_of(config), recipe(), "evaluate")
    with pytest.raises(IdcError, match=r"no photograph of .* is left for evaluate: all 7 were seen"):
        choose_photographs(data_of(config), recipe(*everything), "evaluate")


def test_evaluation_keeps_to_its_half_where_training_photographs_are_not_listed(folder):
    trained = {"stage": "finetune", "photographs": {}, "data": {"photographs": 5000}}
    tuned = Recipe(task="ip2p", model={"name": "tiny"}, provenance=(trained,))
    config = make_config(path=str(folder))
    assert names(choose_photographs(data_of(config), tuned, "evaluate", 2)) == ["1", "3", "5"]
    assert not {*names(choose_photographs(data_of(config), tuned, "train"))} & {"1", "3", "5"}


def test_a_chosen_split_overrules_the_stage(folder):
    searched = [Photograph(name, folder / f"{name}.jpg") for name in "0246"]
    for split, wanted in (("search", "0246"), ("evaluate", "135"), ("train", "0246"), ("all", "135")):
        config = make_config(path=str(folder), split=split)
        assert names(choose_photographs(data_of(config), recipe(*searched), "evaluate")) == list(wanted)


def test_a_split_of_its_own_is_kept(pairs):
    config = make_config(name="instruct_pix2pix", path=str(pairs))
    assert len(choose_photographs(data_of(config), recipe(), "evaluate", 4)) == 3
    assert len(choose_photographs(data_of(config), recipe(), "train")) == 54


def test_of_a_large_set_photographs_all_over_it_are_looked_at(tmp_path):
    listed = [[f"{i:07d}", [str(j) for j in range(4)]] for i in range(8_000)]
    (tmp_path / "seeds.json").write_text(json.dumps(listed))
    for name, seeds in listed:
        (tmp_path / name).mkdir()
        (tmp_path / name / "prompt.json").write_text('{"edit": "x"}')
        for file in (f"{seed}_{number}.jpg" for seed in seeds for number in (0, 1)):
            (tmp_path / name / file).touch()
    config = make_config(name="instruct_pix2pix", path=str(tmp_path))
    found = choose_photographs(data_of(config), recipe(), "search", 16)
    assert 512 <= len(found) <= 1024
    assert found[0].name == "0007200/0"
    assert found[-1].name.startswith("00075")
    assert len(choose_photographs(data_of(config), recipe(), "search")) == 1_600


def test_options_and_names_of_data_sets_are_checked(coco):
    config = make_config(name="coco", path=str(coco), options={"captions": "all"})
    assert len(choose_photographs(data_of(config), recipe(), "evaluate")) == 4
    config.data.options["capitons"] = "all"
    with pytest.raises(IdcError, match=r"unknown key data\.options\.capitons; did you mean 'captions'"):
        choose_photographs(data_of(config), recipe(), "evaluate")


def test_the_configuration_takes_folders_only():
    from hydra import compose, initialize_config_dir

    configuration.register()
    with initialize_config_dir(str(configuration.conf_dir()), version_base="1.3"):
        made = configuration.to_config(compose("config", overrides=["data=coco", "data.path=[a,b]"]))
        assert (made.data.name, made.data.path, made.data.options["captions"]) == ("coco", ["a", "b"], "first")
        for wrong in ("3", "[]", "[3]"):
            with pytest.raises(IdcError, match=r"data\.path must be a folder or a list"):
                configuration.to_config(compose("config", overrides=[f"data.path={wrong}"]))


def test_what_a_data_set_is_called_in_reports():
    assert data_of(make_config()).label == "photographs in scikit-image, scikit-learn and matplotlib"
    assert data_of(make_config(path="a")).label == "a"
    assert data_of(make_config(name="shards", path=["a", "b"])).label == "shards: a, b"


def ip2p():
    return registry.load("task", "ip2p").Task()


def test_a_pair_brings_its_result_and_captions(pairs):
    found = registry.load("data", "instruct_pix2pix").load(str(pairs), "evaluate")
    examples = ip2p().examples(found, 4, 8)
    assert [example.prompt for example in examples] == ["edit 38", "edit 38", "edit 39", "edit 38"]
    assert examples[1].captions == ("scene 38", "edited scene 38")
    assert examples[1].photo == found[1].digest
    assert [round(float(getattr(examples[1], name).mean()) * 255) for name in ("image", "target")] == [176, 196]
    assert examples[1].tags == ()


def test_what_cannot_be_read_is_left_out_and_counted(pairs, monkeypatch):
    """A picture cut short, a damaged prompt, a result that is no image: the other examples stay as they were."""
    lines = []
    monkeypatch.setattr("idcompress.images.pictures.warn", lines.append)
    whole = registry.load("data", "instruct_pix2pix").load(str(pairs), "all")
    wanted = ip2p().examples(whole, 8, 8)
    for name, data in {
        "0000000/100_0.jpg": b"\xff\xd8",
        "0000001/prompt.json": b"{",
        "0000002/102_1.jpg": b"x",
    }.items():
        (pairs / name).write_bytes(data)
    found = registry.load("data", "instruct_pix2pix").load(str(pairs), "all")
    made = ip2p().examples(found, 8, 8)
    kept = [example for example in wanted if example.prompt != "edit 1" and example.index not in (0, 3)]
    assert [(e.index, e.name, e.prompt) for e in made] == [(e.index, e.name, e.prompt) for e in kept]
    assert len(lines) == 1 and lines[0].startswith("3 photographs cannot be read and are left out, 0000000/100, ")
    assert digests_of(found, range(3)).keys() == {"0000000/100", "0000000/200"}
    assert len(without(found, [found[1].digest])) == len(found) - 1
    with pytest.raises(IdcError, match="no photograph can be read; the first: .*100_0.jpg"):
        ip2p().examples(found, 1, 8)


def test_the_result_is_cut_as_the_image_is(tmp_path):
    noise = (np.random.default_rng(0).random((40, 60, 3)) * 255).astype(np.uint8)
    for name in ("before", "after"):
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    after = Photograph("after", tmp_path / "after.png")
    photo = Photograph("before", tmp_path / "before.png", "keep it", after)
    for example in ip2p().examples([photo], 3, 8):
        assert torch.equal(example.image, example.target)


def test_other_instructions_leave_the_result_aside(pairs):
    found = registry.load("data", "instruct_pix2pix").load(str(pairs), "evaluate")
    example = ip2p().examples(found, 1, 8, ["paint it blue"])[0]
    assert (example.prompt, example.target, example.captions) == ("paint it blue", None, None)


def test_other_tasks_take_a_pair_as_a_photograph(pairs):
    found = registry.load("data", "instruct_pix2pix").load(str(pairs), "evaluate")
    example = registry.load("task", "controlnet").Task().examples(found, 1, 16)[0]
    assert (example.prompt, example.target) == ("edit 38", None)
    example = registry.load("task", "stablesr").Task().examples(found, 1, 16)[0]
    assert round(float(example.target.mean()) * 255) == colour(found[0].open())
