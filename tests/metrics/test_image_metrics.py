"""Every image metric: right against its reference package, perfect on itself, blind to batches and order."""

import json
import math
import random

import pytest
import torch

from idcompress.errors import IdcError
from idcompress.images.edits import EDITS
from idcompress.metrics import (
    canny_f1,
    canny_f1_shuffled,
    edit_psnr,
    edit_retrieval,
    edit_success_rate,
    hard_edit_retrieval,
    hard_edit_success_rate,
    psnr,
    psnr_y,
    ssim,
    ssim_y,
)
from idcompress.types import Batch, Example

SIZE = 48
METRICS = [
    psnr,
    psnr_y,
    ssim,
    ssim_y,
    edit_psnr,
    edit_success_rate,
    hard_edit_success_rate,
    canny_f1,
    canny_f1_shuffled,
]
IDS = [module.__name__.rsplit(".", 1)[-1] for module in METRICS]


def smooth(generator, size=SIZE):
    """A random picture with structure: blurred noise, so that it has some edges and not only edges."""
    coarse = torch.rand(1, 3, 7, 7, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)[0]


def noisy(image, generator, scale=0.1):
    return (image + scale * torch.randn(image.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def batch() -> Batch:
    from idcompress.images.canny import canny

    generator = torch.Generator().manual_seed(0)
    examples, outputs, references = [], [], []
    for index in range(7):
        image, target = smooth(generator), smooth(generator)
        examples.append(
            Example(
                index=index,
                name=f"photo-{index}",
                photo=f"digest-{index // 2}",
                image=image,
                prompt="make it warmer",
                target=target,
                condition=canny(target[None])[0].expand(3, -1, -1),
                tags=("hard",) if index % 2 else ("easy",),
            )
        )
        outputs.append(noisy(target, generator))
        references.append(smooth(generator))
    return Batch(examples, torch.stack(outputs), torch.stack(references))


def take(batch, order):
    references = None if batch.references is None else batch.references[order]
    return Batch([batch.examples[i] for i in order], batch.outputs[order], references)


def evaluate(module, *batches, **parameters):
    metric = module.Metric(**parameters)
    for batch in batches:
        metric.update(batch)
    return metric.compute()


@pytest.mark.parametrize("module", METRICS, ids=IDS)
def test_value_does_not_depend_on_batches_or_order(module, batch):
    whole = evaluate(module, batch)
    order = random.Random(1).sample(range(7), 7)
    parts = [take(batch, order[:1]), take(batch, order[1:5]), take(batch, order[5:])]
    assert whole.value is not None
    again = evaluate(module, *parts)
    assert again.value == pytest.approx(whole.value, abs=1e-12)
    assert again.per_image == pytest.approx(whole.per_image, abs=1e-12)
    assert evaluate(module, batch, batch) == whole


@pytest.mark.parametrize("module", METRICS, ids=IDS)
def test_states_what_it_is(module):
    metric = module.Metric()
    assert isinstance(metric.higher_is_better, bool)
    assert metric.needs
    assert metric.compares
    assert metric.unit in ("", "dB")
    first = module.__doc__.splitlines()[0]
    assert first.endswith((".", ",", "]")) or len(first) > 20


PERFECT = [(psnr, None), (psnr_y, None), (ssim, 1.0), (ssim_y, 1.0), (edit_psnr, None), (edit_success_rate, 1.0)]
PERFECT += [(hard_edit_success_rate, 1.0)]


@pytest.mark.parametrize(("module", "best"), PERFECT, ids=[m.__name__.rsplit(".", 1)[-1] for m, _ in PERFECT])
def test_the_reference_itself_is_perfect_and_a_worse_output_is_worse(module, best, batch):
    generator = torch.Generator().manual_seed(3)
    wanted = batch.stack("target")
    same = Batch(batch.examples, wanted, wanted)
    value = evaluate(module, same)
    if best is None:
        assert value.value is None
        assert value.perfect
        assert "exactly" in value.note
    else:
        assert value.value == pytest.approx(best, abs=1e-12)
    near, far = (
        evaluate(module, Batch(batch.examples, noisy(wanted, generator, scale), wanted)).value for scale in (0.05, 2.0)
    )
    assert near > far


def test_edges_of_the_condition_itself_are_perfect_and_beat_chance(batch):
    targets = Batch(batch.examples, batch.stack("target"))
    assert evaluate(canny_f1, targets).value == 1.0
    assert evaluate(canny_f1_shuffled, targets).value < 0.9


def test_psnr_and_ssim_equal_the_reference_package(batch):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    values, similarities = evaluate(psnr, batch), evaluate(ssim, batch)
    for index in range(7):
        pair = (batch.references[index].double().numpy(), batch.outputs[index].double().numpy())
        assert values.per_image[index] == pytest.approx(peak_signal_noise_ratio(*pair, data_range=1), abs=1e-10)
        similarity = structural_similarity(
            *pair, data_range=1, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert similarities.per_image[index] == pytest.approx(similarity, abs=1e-10)
    assert values.value == pytest.approx(sum(values.per_image.values()) / 7, abs=1e-12)


@pytest.mark.slow  # importing torchmetrics takes long
def test_ssim_equals_the_inner_part_of_torchmetrics(batch):
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pair = (batch.outputs.double(), batch.references.double())
    _, windows = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none", return_full_image=True)
    assert evaluate(ssim, batch).value == pytest.approx(float(windows[..., 5:-5, 5:-5].mean()), abs=1e-10)
    values = peak_signal_noise_ratio(*pair, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert evaluate(psnr, batch).value == pytest.approx(float(values.mean()), abs=1e-5)  # theirs is float32


def test_luma_is_that_of_skimage(batch):
    from skimage.color import rgb2ycbcr

    luma = psnr_y.studio_luma(batch.outputs[0])[0].numpy()
    theirs = rgb2ycbcr(batch.outputs[0].double().numpy(), channel_axis=0)[0] / 255
    assert luma == pytest.approx(theirs, abs=1e-12)


def test_black_against_white_and_one_exact_image_among_others():
    black, white = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    examples = [Example(i, str(i), str(i), black) for i in range(2)]
    value = evaluate(psnr, Batch(examples, torch.stack([black, black]), torch.stack([white, black])))
    assert value.value == 0.0
    assert value.per_image == {0: 0.0}
    assert "1 of 2" in value.note
    json.dumps(value.per_image, allow_nan=False)
    assert evaluate(ssim, Batch(examples, torch.stack([black, black]), torch.stack([white, black]))).value < 0.51


def test_success_is_judged_by_kind_and_copying_the_input_fails():
    image, target = torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)
    examples = [
        Example(0, "better", "a", image, target=target, tags=("easy",)),
        Example(1, "copy", "a", image, target=target, tags=("easy",)),
        Example(2, "hard", "a", image, target=target, tags=("hard",)),
        Example(3, "no change asked for", "a", target, target=target, tags=("easy",)),
        Example(4, "no target", "a", image),
    ]
    outputs = torch.stack([torch.full((3, 8, 8), v) for v in (0.3, 0.2, 0.1, 0.5, 0.5)])
    easy, hard = (evaluate(m, Batch(examples, outputs)) for m in (edit_success_rate, hard_edit_success_rate))
    assert easy.per_image == {0: 1.0, 1: 0.0}
    assert easy.value == 0.5
    assert hard.per_image == {2: 0.0}


def test_an_edit_is_found_by_its_true_result_among_all_edits():
    generator = torch.Generator().manual_seed(5)
    image = smooth(generator)
    flip, zoom, blue = (EDITS[name] for name in ("flip_horizontally", "zoom_in", "blur"))
    truth = {edit: edit.apply(image[None])[0] for edit in (flip, zoom, blue)}
    asked = [(flip, truth[flip]), (flip, truth[zoom]), (flip, image), (blue, noisy(truth[blue], generator, 0.01))]
    examples = [
        Example(i, str(i), "a", image, edit.phrasings[0], target=truth[edit]) for i, (edit, _) in enumerate(asked)
    ]
    examples.append(Example(4, "no edit of ours", "a", image, "make it rain", target=image.flip(0)))
    batch = Batch(examples, torch.stack([*(output for _, output in asked), image]))
    assert evaluate(hard_edit_retrieval, batch).per_image == {0: 1.0, 1: 0.0, 2: 0.0}
    assert evaluate(edit_retrieval, batch).per_image == {3: 1.0}


def test_edge_f1_tolerates_one_pixel_and_counts_by_hand():
    line, shifted, far = (torch.zeros(8, 8, dtype=torch.bool) for _ in range(3))
    line[:, 2] = shifted[:, 3] = far[:, 5] = True
    empty = torch.zeros(8, 8, dtype=torch.bool)
    assert canny_f1.edge_f1(line, shifted) == 1.0
    assert canny_f1.edge_f1(line, far) == 0.0
    assert canny_f1.edge_f1(line | far, shifted) == pytest.approx(2 * 0.5 / 1.5)  # precision 1/2, recall 1
    assert canny_f1.edge_f1(empty, empty) == 1.0
    assert canny_f1.edge_f1(empty, line) == canny_f1.edge_f1(line, empty) == 0.0


def test_shuffled_edges_never_meet_their_own_photograph(batch):
    one_photo = Batch(batch.examples[:2], batch.outputs[:2])
    value = evaluate(canny_f1_shuffled, one_photo)
    assert value.value is None
    assert "photographs" in value.note
    two = evaluate(canny_f1_shuffled, take(batch, [0, 1, 2]))
    edges, wanted = canny_f1.edges_of(batch)
    assert two.per_image == {
        0: canny_f1.edge_f1(edges[0], wanted[2]),
        1: canny_f1.edge_f1(edges[1], wanted[2]),
        2: canny_f1.edge_f1(edges[2], wanted[0]),
    }


def test_nothing_to_compare_with_is_said_and_not_a_number(batch):
    bare = Batch([Example(0, "bare", "a", batch.examples[0].image)], batch.outputs[:1])
    for module in METRICS:
        value = evaluate(module, bare)
        assert value.value is None
        assert not value.perfect
        assert value.note


def test_compares_with_another_image_on_request(batch):
    against_target = evaluate(psnr, batch, against="target")
    assert against_target == evaluate(edit_psnr, batch)
    assert psnr.Metric(against="target").needs == ("target",)
    with pytest.raises(IdcError, match="did you mean 'target'"):
        psnr.Metric(against="targt")


def test_bad_outputs_are_refused(batch):
    outputs = batch.outputs.clone()
    outputs[2, 0, 0, 0] = math.nan
    for module in METRICS:
        with pytest.raises(IdcError, match=r"photo-2.*dtype=float32"):
            evaluate(module, Batch(batch.examples, outputs, batch.references))
    with pytest.raises(IdcError, match="47x48 px"):
        evaluate(psnr, Batch(batch.examples, batch.outputs[..., 1:], batch.references))
    with pytest.raises(IdcError, match="at least 11 px"):
        evaluate(ssim, Batch(batch.examples[:1], torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)))
