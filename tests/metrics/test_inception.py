"""FID and KID against torch-fidelity, on a network of the published layout whose weights are drawn."""

import pytest
import torch

from idcompress.images.pictures import to_pil
from idcompress.metrics import _inception, fid, kid
from idcompress.types import Batch, Example

NUMBER = 4


def pictures(generator, shift):
    coarse = 0.8 * torch.rand(NUMBER, 3, 6, 6, generator=generator) + shift
    return torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(0, 1)


def write_stand_in(path, pixels, monkeypatch):
    """Random weights as torch-fidelity lays them out, scaled layer by layer so that pictures differ in the features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save({}, path)
    with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = FeatureExtractorInceptionV3("stand-in", ["2048"], str(path))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(pixels)
    torch.save(network.state_dict(), path)


def test_fid_and_kid_equal_those_of_torch_fidelity(tmp_path, monkeypatch):
    """Ours embeds pictures one by one and works in float64; torch-fidelity keeps means, or all, in float32."""
    torch_fidelity = pytest.importorskip("torch_fidelity")
    generator = torch.Generator().manual_seed(1)
    real, made = pictures(generator, 0.0), pictures(generator, 0.2)
    for name, images in (("real", real), ("made", made)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            to_pil(image).save(tmp_path / name / f"{i}.png")
    weights = tmp_path / "inception.pth"
    write_stand_in(weights, (255 * torch.cat([real[:2], made[:2]])).byte(), monkeypatch)
    monkeypatch.setattr(_inception, "_find", lambda *_: weights)
    monkeypatch.setattr(_inception, "CACHE", tmp_path / "cache")

    examples = [Example(i, str(i), str(i), image) for i, image in enumerate(real)]
    ours = {}
    for module in (fid, kid):
        metric = module.Metric()
        metric.update(Batch(examples, made))
        ours[module] = metric.compute().value
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "real"),
        input2=str(tmp_path / "made"),
        feature_extractor_weights_path=str(weights),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=NUMBER,
        batch_size=NUMBER,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # without processes that load
        verbose=False,
    )
    assert ours[fid] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert ours[kid] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert ours[fid] > 10 and ours[kid] > 1e-3
