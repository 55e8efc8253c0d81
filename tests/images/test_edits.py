"""The instruction edits are what their names say, stay in range, and differ enough from their input."""

import pytest
import torch
from skimage import data

from idcompress import registry
from idcompress.images.edits import EDITS, edit_for_prompt, nearest_results
from idcompress.images.photo_sets import packaged


def photos() -> torch.Tensor:
    """Four 64x64 crops of public photographs, (4, 3, 64, 64) in [0, 1]."""
    crops = []
    for picture in (data.astronaut(), data.chelsea(), data.coffee(), data.rocket()):
        tensor = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        short = min(tensor.shape[-2:])
        crop = tensor[None, :, :short, :short]
        crops.append(torch.nn.functional.interpolate(crop, size=(64, 64), mode="area"))
    return torch.cat(crops)


@pytest.mark.parametrize("name", EDITS)
def test_range_shape_and_purity(name: str) -> None:
    image = photos()
    before = image.clone()
    edited = EDITS[name].apply(image)
    assert edited.shape == image.shape
    assert edited.dtype == image.dtype
    assert edited.min() >= 0 and edited.max() <= 1
    assert torch.equal(image, before)
    single = EDITS[name].apply(image[1:2])
    assert torch.allclose(single[0], edited[1], atol=1e-6)


def test_enough_edits_with_several_unique_phrasings() -> None:
    assert sum(not edit.hard for edit in EDITS.values()) >= 12
    assert sum(edit.hard for edit in EDITS.values()) >= 6
    phrasings = [text for edit in EDITS.values() for text in edit.phrasings]
    assert len(set(phrasings)) == len(phrasings)
    assert all(len(edit.phrasings) >= 3 for edit in EDITS.values())
    assert all(text == " ".join(text.lower().split()) for text in phrasings)


def test_on_average_the_input_is_far_from_the_true_edit() -> None:
    image = photos()
    values = []
    for edit in EDITS.values():
        error = (edit.apply(image) - image).square().flatten(1).mean(1)
        values.append((-10 * error.log10()).mean())
    assert torch.stack(values).mean() <= 20


def test_hard_edits_move_content() -> None:
    image = photos()
    flipped = EDITS["flip_horizontally"].apply(image)
    assert torch.equal(flipped[..., 0], image[..., -1])
    assert torch.equal(EDITS["rotate_180"].apply(image), EDITS["flip_vertically"].apply(flipped))
    swapped = EDITS["swap_halves"].apply(image)
    assert torch.equal(swapped[..., :32], image[..., 32:])
    mirrored = EDITS["mirror_left"].apply(image)
    assert torch.equal(mirrored, mirrored.flip(-1))
    zoomed = EDITS["zoom_in"].apply(image)
    centre = torch.nn.functional.avg_pool2d(zoomed, 2)
    assert (centre - image[..., 16:48, 16:48]).abs().mean() < 0.05


@pytest.mark.parametrize("size", [(48, 80), (33, 65)])
def test_any_size(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    for edit in EDITS.values():
        assert edit.apply(image).shape == image.shape, edit.name


def test_edit_for_prompt_ignores_case_and_spaces() -> None:
    edit = edit_for_prompt("  Flip it   HORIZONTALLY ")
    assert edit is not None and edit.name == "flip_horizontally"
    assert edit_for_prompt("make it a castle") is None


def test_an_edit_meets_every_photograph():
    """20 edits and four or five photographs: without a shift each edit would meet the same one in every round."""
    task = registry.load("task", "ip2p").Task()
    for number in (4, 5):
        photos = packaged("all")[:number]
        met = {name: set() for name in EDITS}
        for example in task.examples(photos, len(EDITS) * number, 8):
            met[example.tags[1]].add(example.photo)
        assert {len(names) for names in met.values()} == {number}


def test_true_results_are_told_apart_and_chance_finds_nothing() -> None:
    images = photos()
    for name, edit in EDITS.items():
        assert nearest_results(edit.apply(images), images) == [name] * len(images)
    assert nearest_results(images, images) == [None] * len(images)
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    assert not {name for name, edit in EDITS.items() if edit.hard} & {*nearest_results(flat, images)}
