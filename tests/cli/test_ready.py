"""What a run will need is looked for before it begins: one line names all that is missing, and nothing is left."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idcompress.stages import _ready

SMALL = (
    *("num_inference_steps=2", "depth_search.num_samples=2", "depth_search.min_depth=12", "tsopt.num_samples=2"),
    *("tsopt.num_inference_steps=1", "tsopt.reference_steps=2", "timesteps=uniform", "evaluate.num_samples=2"),
    *("evaluate.latency=false", "evaluate.alternatives=false", "report.num_images=1"),
)
CAPTIONS = {"prompt": "make it so", "input_caption": "a square", "output_caption": "a blue square"}


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    monkeypatch.delenv("IDC_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def captioned(photos):
    rows = [{"file_name": f"{number}.png", **CAPTIONS} for number in range(4)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return photos


def nothing_left():
    return not Path("outputs").exists() or not any(path.is_file() for path in Path("outputs").rglob("*"))


@pytest.mark.parametrize("task", ["ip2p", "controlnet"])
def test_plain_photographs_without_any_metric_weights_are_judged_by_psnr(idc, random_model, no_weights, photos, task):
    """The whole of compress, by the official settings."""
    keys = (f"task={task}", "model=official", f"model.path={random_model(task)}", f"data.path={photos}")
    result = idc("compress", *keys, *SMALL, "hydra.run.dir=run")
    (line,) = [line for line in result.out.splitlines() if line.startswith("thresholds: ")]
    bound = {"ip2p": 22, "controlnet": 17}[task]
    assert line.startswith(f"thresholds: psnr >= {bound}, in place of the task's own, ")
    assert result.out.index(line) < result.out.index("loading ")
    assert result.code == 0, result.err
    searched = json.loads(Path("run/depth_search/metrics.json").read_text())["thresholds"]
    assert [(row["metric"], row["bound"]) for row in searched] == [("psnr", bound)]
    measured = json.loads(Path("run/evaluate/metrics.json").read_text())["metrics"]
    assert "psnr" in measured and not {"fid", "clip_score", "clip_similarity"} & measured.keys()


class Judging:
    """The readiness of a depth search by the official settings, without a run."""

    def __init__(self, monkeypatch, task, missing=(), **changes):
        from hydra import compose, initialize_config_dir

        from idcompress import config
        from idcompress.errors import IdcError
        from idcompress.runs.recipe import Recipe

        config.register()
        keys = [f"{name}={value}" for name, value in changes.items()]
        with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
            made = config.to_config(compose("config", overrides=[f"task={task}", "model=official", *keys]))

        def make(self, name):
            if name in missing:
                raise IdcError(f"{name} needs weights")

        self.said = []
        monkeypatch.setattr(_ready._Needs, "_make", make)
        monkeypatch.setattr(_ready, "say", self.said.append)
        needs = _ready._Needs(made, Recipe(task=task, model={"name": "official"}), ["depth_search"], chained=False)
        self.metrics = [row["metric"] for row in needs.with_thresholds().depth_search.thresholds]


def test_captions_decide_what_ip2p_is_judged_by(monkeypatch, captioned):
    path = {"data.path": captioned}
    own = Judging(monkeypatch, "ip2p", **path)
    assert own.metrics == ["clip_similarity", "clip_directional_similarity"] and own.said == []
    other = Judging(monkeypatch, "ip2p", **path, prompt="blue")
    assert other.metrics == ["clip_similarity", "psnr"]
    (captioned / "metadata.jsonl").unlink()
    plain = Judging(monkeypatch, "ip2p", **path)
    assert plain.metrics == ["clip_similarity", "psnr"]
    assert plain.said[0].startswith("thresholds: clip_similarity >= 0.7 and psnr >= 22, in place of the task's own, ")
    assert "wants captions of every input" in plain.said[0] and "metadata.jsonl" in plain.said[0]
    assert Judging(monkeypatch, "ip2p", missing=["clip_similarity"], **path).metrics == ["psnr"]


def test_few_images_decide_what_controlnet_is_judged_by(monkeypatch):
    few = Judging(monkeypatch, "controlnet")
    assert few.metrics == ["clip_score", "psnr"]
    assert "fid wants 2,048 images or more, and depth_search.num_samples is 16" in few.said[0]
    assert Judging(monkeypatch, "controlnet", **{"depth_search.num_samples": 2048}).metrics == ["fid"]
    assert Judging(monkeypatch, "controlnet", missing=["clip_score"]).metrics == ["psnr"]
    chosen = Judging(monkeypatch, "controlnet", **{"depth_search.thresholds": "[{metric: fid, bound: 300}]"})
    assert chosen.metrics == ["fid"] and chosen.said == []


def test_all_that_is_missing_is_said_at_once(idc, random_model, no_weights, tmp_path):
    keys = ("evaluate.metrics=[lpips,clip_score,psnr]", "tsopt.metric=niqe", f"data.path={tmp_path / 'nowhere'}")
    result = idc("compress", "experiment=smoke", f"model.path={random_model('ip2p')}", *keys)
    assert result.code == 2 and result.err.count("\n") == 1 and nothing_left()
    for words in ("4 things", "nowhere", "niqe needs niqe_pris_params.npz", "lpips needs alexnet", "clip_score needs"):
        assert words in result.err, words
    assert result.err.count("IDC_WEIGHTS=FOLDER") == 3 and "loading" not in result.out


def test_a_protocol_names_its_data_its_weights_and_its_model(idc, no_weights):
    result = idc("compress", "experiment=protocol_ip2p", "data.path=nowhere")
    assert result.code == 2 and result.err.count("\n") == 1 and nothing_left()
    for words in ("not in the hub cache", "found no such folder", "clip_similarity needs", "clip_directional_similar"):
        assert words in result.err, words


def test_a_later_stage_is_looked_at_before_the_first(idc, random_model, photos):
    keys = ("experiment=smoke", f"model.path={random_model('ip2p')}", f"data.path={photos}")
    result = idc("compress", *keys, "prompt=make it so")
    assert result.code == 2 and "the true result of 'make it so'" in result.err and nothing_left()


def test_an_evaluation_that_will_have_no_photograph_left_is_told_first(idc, random_model, photos):
    keys = ("experiment=smoke", f"model.path={random_model('ip2p')}", f"data.path={photos}", "data.split=all")
    result = idc("compress", *keys, "compress.stages=[tsopt,evaluate]", "tsopt.num_samples=4")
    assert result.code == 2 and "no photograph" in result.err and nothing_left()


def test_captions_that_an_evaluation_insists_on_must_be_there(idc, random_model, photos, monkeypatch):
    monkeypatch.setattr(_ready._Needs, "_make", lambda self, name: None)
    keys = ("experiment=smoke", f"model.path={random_model('ip2p')}", f"data.path={photos}")
    result = idc("evaluate", *keys, "evaluate.metrics=[clip_directional_similarity]")
    assert result.code == 2 and "evaluate.metrics: clip_directional_similarity wants captions" in result.err
    result = idc("evaluate", *keys, "evaluate.metrics=[psnr,'clip_directional_similarity?']")
    assert result.code == 0 and "left out: clip_directional_similarity wants captions" in result.out, result.err
