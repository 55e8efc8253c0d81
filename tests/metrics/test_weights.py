"""Metrics with weights: the real ones with their pinned values, or one line at once; never a stand-in."""

import importlib
import time
from dataclasses import dataclass

import pytest
import torch

from idcompress.errors import IdcError
from idcompress.metrics._weights import find_weights, load_state, tensors_digest
from idcompress.types import Batch, Example

WORD_PAIR = ("a photo of a cat", "a photo of a dog")


@pytest.fixture(scope="session")
def lpips_images(lpips_folder):
    from idcompress.images.pictures import load_image, to_tensor

    return [to_tensor(load_image(lpips_folder / f"ex_{name}.png")) for name in ("ref", "p0", "p1")]


def test_an_absent_file_is_one_line_at_once(no_weights, monkeypatch, tmp_path):
    start = time.perf_counter()
    with pytest.raises(IdcError) as error:
        find_weights(("some-file.pth",), source="https://example.org/some-file.pth", metric="some_metric")
    assert time.perf_counter() - start < 1
    text = str(error.value)
    assert "\n" not in text
    for part in ("some_metric", "some-file.pth", "https://example.org/some-file.pth", "IDC_WEIGHTS=FOLDER"):
        assert part in text
    monkeypatch.setenv("IDC_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(IdcError, match=r"IDC_WEIGHTS=.*nowhere is no folder"):
        find_weights(("some-file.pth",), source="", metric="some_metric")
    with pytest.raises(IdcError, match="does not exist"):
        find_weights(("some-file.pth",), path=str(tmp_path / "gone.pth"), source="", metric="some_metric")
    with pytest.raises(IdcError, match=r"holds no some-file.pth"):
        find_weights(("some-file.pth",), path=str(tmp_path), source="", metric="some_metric")


def test_files_are_found_in_order(no_weights, monkeypatch, tmp_path):
    def find(**given):
        return find_weights(("a.pth", "b.pth"), source="", metric="m", **given)

    cached = tmp_path / "torch" / "hub" / "checkpoints" / "a.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"1")
    assert find() == cached
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    below = folder / "below" / "b.pth"
    below.write_bytes(b"2")
    monkeypatch.setenv("IDC_WEIGHTS", str(folder))
    assert find() == below
    assert find(path=str(cached)) == find(path=str(cached.parent)) == cached


def test_only_plain_tensors_are_loaded(tmp_path):
    text, code, short = tmp_path / "text.pth", tmp_path / "code.pth", tmp_path / "short.safetensors"
    text.write_text("not a checkpoint")
    torch.save(torch.nn.Linear(2, 2), code)
    short.write_bytes(b"\x40\x00\x00\x00\x00\x00\x00\x00{}")
    for path in (text, code, short):
        with pytest.raises(IdcError) as error:
            load_state(path)
        assert path.name in str(error.value)
        assert "\n" not in str(error.value)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(IdcError, match="no dictionary of tensors"):
        load_state(tmp_path / "list.pth")


def test_lpips_without_weights_names_the_file(no_weights):
    from idcompress.metrics import lpips

    with pytest.raises(IdcError, match=r"alexnet-owt-7be5be79\.pth.*download\.pytorch\.org.*IDC_WEIGHTS"):
        lpips.Metric()
    with pytest.raises(IdcError, match="did you mean 'alex'"):
        lpips.Metric(net="alexx")


@pytest.mark.parametrize("name", ["lpips", "target_lpips", "lpips_bicubic"])
def test_a_refusal_names_the_metrics_own_key(no_weights, name):
    module = importlib.import_module(f"idcompress.metrics.{name}")
    with pytest.raises(IdcError, match=rf"^{name} needs .* by metrics\.{name}\.weights=FILE"):
        module.Metric()
    with pytest.raises(IdcError, match=f"^{name}: no trunk"):
        module.Metric(net="alexx")


def test_lpips_equals_the_published_examples(lpips_folder, lpips_images, monkeypatch):
    from idcompress.metrics import lpips

    monkeypatch.setenv("IDC_WEIGHTS", str(lpips_folder.parent))
    reference, first, second = lpips_images
    examples = [Example(i, f"p{i}", str(i), reference, target=reference) for i in range(3)]
    batch = Batch(examples, torch.stack([first, second, reference]), torch.stack([reference] * 3))
    state = torch.get_rng_state()
    metric = lpips.Metric()
    assert torch.equal(state, torch.get_rng_state())
    metric.update(batch)
    value = metric.compute()
    assert value.per_image[0] == pytest.approx(0.7219, abs=5e-5)
    assert value.per_image[1] == pytest.approx(0.1376, abs=5e-5)
    assert value.per_image[2] == 0
    assert set(metric.weight_digests) == {"alexnet_features.pth"}
    split = lpips.Metric(against="target", weights=str(lpips_folder / "alexnet_features.pth"))
    for i in (2, 0, 1):
        split.update(Batch(examples[i : i + 1], batch.outputs[i : i + 1]))
    assert split.compute() == value
    with pytest.raises(IdcError, match="at least 31 px"):
        metric.update(Batch(examples[:1], torch.zeros(1, 3, 30, 30), torch.zeros(1, 3, 30, 30)))


def test_lpips_squeeze_equals_the_value_in_torchmetrics_documentation(lpips_folder):
    from idcompress.metrics import lpips

    torch.manual_seed(42)
    one, other = ((torch.rand(10, 3, 100, 100) * 2) - 1 for _ in range(2))
    metric = lpips.Metric(net="squeeze", weights=str(lpips_folder / "squeezenet1_1_features.pth"))
    values = [metric.compare((a + 1) / 2, (b + 1) / 2) for a, b in zip(one, other, strict=True)]
    assert sum(values) / 10 == pytest.approx(0.1005, abs=1e-4)  # the documentation prints four digits


def test_a_stand_in_under_lpips_name_is_refused(lpips_folder, tmp_path):
    from idcompress.metrics import lpips

    state = load_state(lpips_folder / "alexnet_features.pth")
    state["features.0.weight"] = state["features.0.weight"] + 1e-3
    torch.save(state, tmp_path / "alexnet-owt-7be5be79.pth")
    with pytest.raises(IdcError, match="other values"):
        lpips.Metric(weights=str(tmp_path / "alexnet-owt-7be5be79.pth"))
    with pytest.raises(IdcError, match="no squeezenet1_1"):
        lpips.Metric(net="squeeze", weights=str(lpips_folder / "alexnet_features.pth"))


def test_a_digest_knows_the_content_and_not_the_file():
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    assert tensors_digest(tensors) == tensors_digest(dict(reversed(tensors.items())))
    assert tensors_digest(tensors) != tensors_digest({"a": torch.arange(3.0), "b": torch.ones(4)})


# CLIP: a small random model in open_clip's own folder layout, so that every number below is made the real way.


@dataclass(frozen=True)
class CaptionedExample(Example):
    captions: tuple[str, str] | None = None


@pytest.fixture
def captioned():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 40, 48, generator=generator)
    outputs = torch.rand(3, 3, 40, 48, generator=generator)
    examples = [
        CaptionedExample(i, str(i), str(i), images[i], prompt="make it a dog", captions=WORD_PAIR) for i in range(3)
    ]
    return Batch(examples, outputs)


def test_clip_metrics_equal_open_clip_used_by_hand(clip_folder, captioned):
    import open_clip

    from idcompress.metrics import clip_directional_similarity, clip_score, clip_similarity

    state = torch.get_rng_state()
    metrics = [m.Metric(weights=str(clip_folder)) for m in (clip_similarity, clip_directional_similarity, clip_score)]
    assert torch.equal(state, torch.get_rng_state())
    for metric in metrics:
        metric.update(captioned)
    similarity, direction, score = (metric.compute() for metric in metrics)

    model = open_clip.create_model(f"local-dir:{clip_folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(list(WORD_PAIR))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))

    def embed(images):
        small = torch.nn.functional.interpolate(images, size=(32, 32), mode="bicubic", align_corners=False)
        return torch.nn.functional.normalize(model.encode_image((small - mean) / std), dim=-1)

    with torch.no_grad():
        before, after = embed(captioned.stack("image")), embed(captioned.outputs)
        text = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
        square = torch.nn.functional.interpolate(
            captioned.outputs, size=(32, 38), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)[..., 3:35]
        whole = torch.nn.functional.normalize(model.encode_image((square - mean) / std), dim=-1)
    cosine = torch.nn.functional.cosine_similarity
    assert list(similarity.per_image.values()) == pytest.approx(cosine(before, after).tolist(), abs=1e-5)
    changes = cosine(after - before, (text[1] - text[0])[None].expand(3, -1))
    assert list(direction.per_image.values()) == pytest.approx(changes.tolist(), abs=1e-4)
    scores = 100 * (whole @ text[1]).clamp(min=0)
    assert list(score.per_image.values()) == pytest.approx(scores.tolist(), abs=1e-3)
    assert "open_clip_model.safetensors" in similarity.note


def test_clip_metrics_are_perfect_on_the_input_and_blind_to_batches(clip_folder, captioned):
    from idcompress.metrics import clip_directional_similarity, clip_score, clip_similarity

    same = Batch(captioned.examples, captioned.stack("image"))
    perfect = clip_similarity.Metric(weights=str(clip_folder))
    perfect.update(same)
    assert perfect.compute().value == pytest.approx(1.0, abs=1e-12)
    unchanged = clip_directional_similarity.Metric(weights=str(clip_folder))
    unchanged.update(same)
    assert unchanged.compute().value == 0.0
    for module in (clip_similarity, clip_directional_similarity, clip_score):
        whole, parts = module.Metric(weights=str(clip_folder)), module.Metric(weights=str(clip_folder))
        whole.update(captioned)
        for i in (2, 0, 1):
            parts.update(Batch(captioned.examples[i : i + 1], captioned.outputs[i : i + 1]))
        assert parts.compute() == whole.compute()


def test_an_instruction_is_no_caption(clip_folder):
    from idcompress.metrics import clip_directional_similarity, clip_score

    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch([Example(0, "a", "a", image, prompt="make it a dog")], image[None])
    direction = clip_directional_similarity.Metric(weights=str(clip_folder))
    direction.update(batch)
    assert direction.compute().value is None
    assert "captions" in direction.compute().note
    score = clip_score.Metric(weights=str(clip_folder))
    score.update(Batch([Example(0, "a", "a", image)], image[None]))
    assert score.compute().value is None


def test_clip_refuses_at_once(no_weights, clip_folder, tmp_path):
    import open_clip

    from idcompress.metrics import _clip_model, clip_score, clip_similarity

    published = open_clip.get_pretrained_cfg(*_clip_model._DEFAULT)
    assert published["hf_hub"].strip("/") == _clip_model._DEFAULT_REPOSITORY
    start = time.perf_counter()
    with pytest.raises(IdcError, match=r"ViT-L-14-openai\.safetensors.*vit_large_patch14_clip_224\.openai"):
        clip_similarity.Metric()
    with pytest.raises(IdcError, match="did you mean 'ViT-L-14'"):
        clip_score.Metric(model="ViT-L14")
    with pytest.raises(IdcError, match="did you mean 'openai'"):
        clip_score.Metric(tag="openaii")
    with pytest.raises(IdcError, match="tokenizer from the hub"):
        clip_score.Metric(model="xlm-roberta-base-ViT-B-32", tag="laion5b_s13b_b90k")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "open_clip_config.json").write_text((clip_folder / "open_clip_config.json").read_text())
    with pytest.raises(IdcError, match=r"no open_clip_model\.safetensors"):
        clip_score.Metric(weights=str(tmp_path / "half"))
    whole = (clip_folder / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "half" / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IdcError, match="does not load"):
        clip_score.Metric(weights=str(tmp_path / "half"))
    assert time.perf_counter() - start < 20


# FID and KID: the distances against independent computations; the network only with its real file.


def features(seed, number, dim=12):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(number, dim, generator=generator, dtype=torch.float64) @ mixing + seed


@pytest.mark.parametrize("numbers", [(40, 50), (5, 40), (4, 3)])
def test_frechet_distance_against_the_matrix_square_root(numbers):
    import numpy as np

    from idcompress.metrics.fid import frechet_distance

    one, other = features(1, numbers[0]), features(2, numbers[1])
    first, second = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    # tr (S1 S2)^(1/2) from the eigenvalues of S1 S2, which are real and not negative.
    root = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None)).sum()
    wanted = ((one.mean(0) - other.mean(0)) ** 2).sum().item() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_kernel_distance_against_a_double_loop():
    from idcompress.metrics.kid import kernel_distance

    one, other = features(1, 6, 4), features(2, 5, 4)

    def mean(pairs):
        values = [(float(a @ b) / 4 + 1) ** 3 for a, b in pairs]
        return sum(values) / len(values)

    wanted = mean([(a, b) for i, a in enumerate(one) for j, b in enumerate(one) if i != j])
    wanted += mean([(a, b) for i, a in enumerate(other) for j, b in enumerate(other) if i != j])
    wanted -= 2 * mean([(a, b) for a in one for b in other])
    assert kernel_distance(one, other) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["fid", "kid"])
def test_inception_metrics_refuse_without_library_or_weights(name, no_weights):
    import importlib

    with pytest.raises(IdcError, match=r"torch-fidelity|weights-inception-2015-12-05-6726825d\.pth"):
        importlib.import_module(f"idcompress.metrics.{name}").Metric()
