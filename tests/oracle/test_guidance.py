"""Guidance by one, two and three passes against numbers that are worked out by hand.

The networks here look at what conditions each row of their input and answer with a number that stands for it, so that
the combined output says which rows there were, in which roles, and how they were weighed.
"""

from types import SimpleNamespace

import pytest
import torch

from idcompress import registry
from idcompress.core.guidance import classifier_free_guidance, dual_guidance, num_branches
from idcompress.core.plan import Step

TEXT, NULL = 1.0, -1.0  # what the embeddings of the prompt and of no prompt are filled with
IMAGE = 2.0  # what the latents of the input image are filled with
# What the network of InstructPix2Pix says with text and image, with the image alone, with neither.
BOTH, ALONE, NEITHER = 7.0, 5.0, 1.0


def full(value, *shape):
    return torch.full(shape, value)


# The formulas.


@pytest.mark.parametrize(("scale", "wanted"), [(0.0, 1.0), (1.0, 5.0), (2.0, 9.0), (7.5, 31.0)])
def test_one_scale_by_hand(scale, wanted):
    """1 + s (5 - 1)."""
    found = classifier_free_guidance(full(5.0, 1, 2), full(1.0, 1, 2), scale)
    torch.testing.assert_close(found, full(wanted, 1, 2))


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "wanted"),
    [
        (1.0, 1.0, 7.0),  # all of it
        (0.0, 1.0, 5.0),  # the image alone
        (0.0, 0.0, 1.0),  # neither
        (7.5, 1.0, 5.0 + 7.5 * 2),
        (1.0, 1.5, 1.0 + 2 + 1.5 * 4),
        (7.5, 1.5, 1.0 + 15 + 6),
    ],
)
def test_two_scales_by_hand(text_scale, image_scale, wanted):
    """1 + s_text (7 - 5) + s_image (5 - 1)."""
    found = dual_guidance(full(BOTH, 1, 2), full(ALONE, 1, 2), full(NEITHER, 1, 2), text_scale, image_scale)
    torch.testing.assert_close(found, full(wanted, 1, 2))


def test_guidance_works_pixel_by_pixel_and_image_by_image():
    text, image, null = (
        torch.tensor([[a, b], [c, d]]) for a, b, c, d in ((1.0, 2, 3, 4), (5.0, 6, 7, 8), (9.0, 1, 2, 3))
    )
    found = dual_guidance(text, image, null, 2.0, 3.0)
    wanted = [[9 + 2 * -4 + 3 * -4, 1 + 2 * -4 + 3 * 5], [2 + 2 * -4 + 3 * 5, 3 + 2 * -4 + 3 * 5.0]]
    torch.testing.assert_close(found, torch.tensor(wanted))
    torch.testing.assert_close(classifier_free_guidance(text, null, 2.0), torch.tensor([[-7.0, 3], [4, 5]]))


@pytest.mark.parametrize(
    ("guidance", "passes"),
    [
        ({}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"guidance_scale": 7.5}, 2),
        ({"guidance_scale": 0.0}, 2),
        ({"guidance_scale": 1.0, "image_guidance_scale": 1.0}, 1),
        ({"guidance_scale": 7.5, "image_guidance_scale": 1.0}, 2),
        ({"guidance_scale": 7.5, "image_guidance_scale": 1.5}, 3),
        ({"guidance_scale": 1.0, "image_guidance_scale": 1.5}, 3),
        ({"guidance_scale": 7.5, "image_guidance_scale": 0.0}, 3),
    ],
)
def test_a_scale_of_one_spares_a_pass(guidance, passes):
    assert num_branches(guidance) == passes


# The tasks, over networks that answer with numbers.


class Recorder:
    """A network that keeps the rows that it was called with."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self):
        self.rows = []


class EditNetwork(Recorder):
    def __call__(self, model_input, timestep, states):
        assert len(model_input) == len(states)
        answers = []
        for row, state in zip(model_input, states, strict=True):
            role = (state.mean().item(), row[4:].mean().item())
            self.rows.append(role)
            answers.append({(TEXT, IMAGE): BOTH, (NULL, IMAGE): ALONE, (NULL, 0.0): NEITHER}[role])
        return SimpleNamespace(sample=torch.tensor(answers).view(-1, 1, 1, 1) + 100 * model_input[:, :4])


def edit(guidance, sample):
    """The combined output of InstructPix2Pix for a sample (B, 4, h, w), and the rows of its network."""
    unet, size = EditNetwork(), len(sample)
    conditioning = {
        "text": full(TEXT, size, 3, 5),
        "null": full(NULL, size, 3, 5),
        "image": full(IMAGE, size, 4, 2, 2),
    }
    denoise = registry.load("task", "ip2p").Task().denoise(SimpleNamespace(unet=unet), conditioning, guidance)
    return denoise(sample, Step(500), None)[0], unet.rows


@pytest.mark.parametrize(
    ("text_scale", "image_scale", "wanted", "roles"),
    [
        (1.0, 1.0, 7.0, [(TEXT, IMAGE)]),
        (7.5, 1.0, 5.0 + 7.5 * 2, [(TEXT, IMAGE), (NULL, IMAGE)]),
        (7.5, 1.5, 1.0 + 7.5 * 2 + 1.5 * 4, [(TEXT, IMAGE), (NULL, IMAGE), (NULL, 0.0)]),
        (1.0, 1.5, 1.0 + 2 + 1.5 * 4, [(TEXT, IMAGE), (NULL, IMAGE), (NULL, 0.0)]),
        (7.5, 0.0, 1.0 + 7.5 * 2, [(TEXT, IMAGE), (NULL, IMAGE), (NULL, 0.0)]),
    ],
)
def test_instruct_pix2pix_combines_its_passes(text_scale, image_scale, wanted, roles):
    """The answer moves with the sample itself, too, which every weighing must pass on once."""
    guidance = {"guidance_scale": text_scale, "image_guidance_scale": image_scale}
    sample = torch.tensor([0.25, -1.0]).view(2, 1, 1, 1).expand(2, 4, 2, 2)
    found, rows = edit(guidance, sample)
    torch.testing.assert_close(found, wanted + 100 * sample)
    assert rows == [role for role in roles for _ in sample]


class ControlBranch(Recorder):
    def __call__(self, sample, timestep, states, controlnet_cond, return_dict):
        assert len(sample) == len(states) == len(controlnet_cond)
        self.rows += states.mean((1, 2)).tolist()
        return [controlnet_cond.mean((1, 2, 3))], sample.new_zeros(())


class ControlledNetwork(Recorder):
    def __call__(self, sample, timestep, states, down_block_additional_residuals, mid_block_additional_residual):
        rows = states.mean((1, 2))
        self.rows += rows.tolist()
        answers = 10 * down_block_additional_residuals[0] + rows
        return SimpleNamespace(sample=answers.view(-1, 1, 1, 1).expand_as(sample))


@pytest.mark.parametrize(("scale", "wanted", "roles"), [(1.0, 31.0, [TEXT]), (7.5, 29.0 + 7.5 * 2, [TEXT, NULL])])
def test_controlnet_combines_its_passes(scale, wanted, roles):
    """The edges (3) reach both rows: 10 * 3 + 1 with text, 10 * 3 - 1 without."""
    pipeline = SimpleNamespace(unet=ControlledNetwork(), controlnet=ControlBranch())
    conditioning = {"text": full(TEXT, 2, 3, 5), "null": full(NULL, 2, 3, 5), "condition": full(3.0, 2, 3, 8, 8)}
    denoise = registry.load("task", "controlnet").Task().denoise(pipeline, conditioning, {"guidance_scale": scale})
    found, _ = denoise(torch.zeros(2, 4, 1, 1), Step(500), None)
    torch.testing.assert_close(found, full(wanted, 2, 4, 1, 1))
    assert pipeline.unet.rows == pipeline.controlnet.rows == [role for role in roles for _ in range(2)]
