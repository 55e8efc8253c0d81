"""Every preset and every command from end to end, on stand-ins that have the published models' layout on disk.

The small ones run by default. `-m slow` runs the published sizes with random weights at 128 px, which takes 9 GiB and
the better part of an hour of one core.
"""

import dataclasses
import gc
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from idcompress import registry
from idcompress.config import conf_dir
from idcompress.metrics import _inception, lpips
from idcompress.metrics._weights import load_state, tensors_digest
from idcompress.metrics.clip_aesthetic import HEAD_FILE
from scripts import full_size

LAYOUTS = {"ip2p": "pairs", "controlnet": "captioned", "stablesr": "div2k"}
# What makes a preset small without taking a stage, a metric or a data set away from it.
FEW = [
    "num_inference_steps=2",
    "depth_search.num_samples=2",
    "depth_search.min_depth=12",
    "tsopt.num_inference_steps=1",
    "tsopt.num_samples=1",
    "tsopt.reference_steps=2",
    "timesteps=uniform",
    "evaluate.num_samples=2",
    "evaluate.alternatives=false",
    "evaluate.latency=false",
    "finetune.batch_size=4",  # the presets split an update in four
    "finetune.num_samples=1",
    "finetune.num_inference_steps=1",
    "finetune.checkpoint_every_n_steps=1",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def stand_ins(request, tmp_path_factory):
    """(task or "metrics") -> its folder, written once; and the side of its pictures."""
    root, small = tmp_path_factory.mktemp(request.param), request.param == "small"
    side = full_size.SMALL_PX if small else 128

    def get(what):
        folder = root / what
        if not folder.exists():
            if what == "metrics":
                full_size.write_metrics(folder, small=small)
            elif what == "stablesr":
                full_size.write_checkpoints(folder, small=small, image_px=side)
            else:
                full_size.write_pipeline(what, folder, small=small, image_px=side)
        return folder

    get.side, get.root = side, root
    yield get
    shutil.rmtree(root)


@pytest.fixture
def pipeline(stand_ins, idc):
    """task -> the keys that name its pipeline folder; StableSR's is made by `idc convert`, as a user makes it."""

    def keys(task):
        folder = stand_ins(task)
        if task == "stablesr":
            converted = stand_ins.root / "converted"
            if not converted.exists():
                files = {"main_ckpt": "stablesr.ckpt", "cfw_ckpt": "vqgan_cfw.ckpt", "config": "config.json"}
                given = [f"convert.{name}={folder / file}" for name, file in files.items()]
                result = idc("convert", "task=stablesr", *given, f"output.path={converted}")
                assert result.code == 0, result.err
            folder = converted
        gc.collect()
        return [f"task={task}", "model=official", f"model.path={folder}"]

    return keys


@pytest.fixture
def metric_keys(stand_ins, monkeypatch):
    """Keys that name the stand-ins of metric weights. LPIPS and Inception, which take published weights alone, are told
    the stand-in's digest and given a network of random projections."""
    folder = stand_ins("metrics")
    digest = tensors_digest(load_state(folder / "alexnet_features.pth"))
    monkeypatch.setitem(lpips._TRUNKS, "alex", dataclasses.replace(lpips._TRUNKS["alex"], digest=digest))
    projection = torch.randn(3 * 8 * 8, 2048, generator=torch.Generator().manual_seed(0)) / 100

    def features(pixels):
        return [torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 8).flatten(1) @ projection]

    monkeypatch.setattr(_inception, "_find", lambda weights, metric: folder / "alexnet_features.pth")
    monkeypatch.setattr(_inception, "_load", lambda path, device: features)
    clips = ("clip_similarity", "clip_directional_similarity", "clip_score", "clip_aesthetic")
    trunks = ("lpips", "target_lpips", "lpips_bicubic")
    return [
        *(f"metrics.{name}.weights={folder / 'clip'}" for name in clips),
        *(f"metrics.{name}.weights={folder / 'alexnet_features.pth'}" for name in trunks),
        f"metrics.clip_aesthetic.head={folder / HEAD_FILE}",
    ]


def presets(kind):
    return sorted(path.stem for path in (conf_dir() / "experiment").glob(f"{kind}_*.yaml"))


def preset(name):
    return yaml.safe_load((conf_dir() / "experiment" / f"{name}.yaml").read_text())


def thresholds(task, name):
    """The preset's thresholds with bounds that noise meets, so that a depth is found."""
    own = (preset(name).get("depth_search") or {}).get("thresholds")
    rows = own or yaml.safe_load((conf_dir() / "task" / f"{task}.yaml").read_text())["models"]["official"]["thresholds"]
    met = {"at_least": -1e9, "at_most": 1e9}
    bounds = [f"{{metric: {row['metric']}, bound: {met[row['direction']]}}}" for row in rows]
    return f"depth_search.thresholds=[{','.join(bounds)}]"


def data_keys(task, folder):
    return [
        f"data.path={folder}",
        *([f"data.options.captions_file={folder}/blip.json"] if task == "controlnet" else []),
    ]


@pytest.mark.parametrize("name", presets("protocol"))
def test_a_protocol_runs_every_stage_with_its_own_metrics(name, idc, pipeline, metric_keys, request):
    task = name.removeprefix("protocol_")
    data = data_keys(task, request.getfixturevalue(LAYOUTS[task]))
    keys = [*pipeline(task), f"experiment={name}", *data, *metric_keys, *FEW, thresholds(task, name)]
    result = idc("compress", *keys, "hydra.run.dir=run")
    assert result.code == 0, result.err
    metrics = json.loads(Path("run/evaluate/metrics.json").read_text())
    assert metrics["num_images"] == 2
    for entry in preset(name)["evaluate"]["metrics"]:
        measured = metrics["metrics"][entry.removesuffix("?")]
        assert measured["original"] is not None and measured["compressed"] is not None, measured
    for stage in ("depth_search", "tsopt"):
        assert Path(f"run/{stage}/recipe.json").is_file()
    assert Path("run/report/report.html").stat().st_size > 10_000


@pytest.mark.parametrize("name", presets("finetune"))
def test_a_fine_tuning_preset_trains_and_its_result_is_used(name, idc, pipeline, stand_ins, request):
    task = name.removeprefix("finetune_")
    folder = request.getfixturevalue("coco" if task == "controlnet" else LAYOUTS[task])
    keys = [*pipeline(task), f"data.path={folder}", f"finetune.resolution={stand_ins.side}", *FEW]
    result = idc("finetune", f"experiment={name}", "recipe=none", *keys, "hydra.run.dir=tuned")
    assert result.code == 0, result.err
    recipe = json.loads(Path("tuned/recipe.json").read_text())
    assert recipe["cut"]["depth"] == preset(name)["depth"]
    assert (recipe["provenance"][-1]["steps"], recipe["provenance"][-1]["batch_size"]) == (1, 4)
    with safe_open("tuned/unet.safetensors", "pt") as saved:
        names = list(saved.keys())
        assert {saved.get_slice(key).get_dtype() for key in names} == {"F16"}  # as the model's own files
    Image.radial_gradient("L").convert("RGB").resize((16, 16)).save("photo.png")  # stablesr makes 64 px of it
    result = idc("translate", "recipe=tuned/recipe.json", "image=photo.png", "num_inference_steps=1", *FEW[:1])
    assert result.code == 0, result.err


def test_bk_sdm_is_retrained_as_its_authors_did_and_its_result_is_used(idc, pipeline, stand_ins, pairs):
    keys = [*pipeline("ip2p"), "prune.size=small", "data=instruct_pix2pix", f"data.path={pairs}"]
    keys += [f"finetune.resolution={stand_ins.side}", "trainer.precision=32-true", *FEW]  # 16-mixed wants a GPU
    result = idc("finetune", "experiment=bk_sdm", "recipe=none", *keys, "hydra.run.dir=tuned")
    assert result.code == 0, result.err
    recipe = json.loads(Path("tuned/recipe.json").read_text())
    assert (recipe["cut"]["method"], recipe["cut"]["size"]) == ("bk_sdm", "small")
    entry = recipe["provenance"][-1]
    assert (entry["steps"], entry["components"], entry["loss"]) == (1, ["unet"], "distill")
    Image.radial_gradient("L").convert("RGB").resize((16, 16)).save("photo.png")
    result = idc("translate", "recipe=tuned/recipe.json", "image=photo.png", "prompt=make it blue", *FEW[:1])
    assert result.code == 0, result.err


def test_every_command_runs(idc, pipeline, stand_ins, metric_keys, pairs):
    """On InstructPix2Pix, one command after the other as README has them; `convert` runs for StableSR above."""
    Image.radial_gradient("L").convert("RGB").save("photo.png")
    common = [*pipeline("ip2p"), f"data.path={pairs}", "data=instruct_pix2pix", *metric_keys, *FEW]
    psnr = "depth_search.thresholds=[{metric: psnr, bound: 0}]"
    few_plans = ["plan.macs=0.7", "plan.menu=[]", "plan.patterns=[full]", "plan.lists=[trailing]"]
    few_plans += ["plan.samplers=[ddim]", *(f"plan.num_{images}=1" for images in ("fitted", "searched", "validated"))]
    few_rows = ["compare=equal_cost", "compare.metrics=[psnr]", "compare.num_inference_steps=1"]
    few_rows += ["evaluate.latency=false"]
    few_rows += [f"compare.rows.{name}=null" for name in ("dpm_solver", "unipc", "gamma", "paper", "fitted", "best")]
    commands = {
        "profile": ["recipe=none", "depth=9", "profile.latency=false"],
        "depth-search": [psnr],
        "finetune": [f"finetune.resolution={stand_ins.side}", "trainer.accumulate_grad_batches=2", "loss=task"],
        "tsopt": [],
        "evaluate": ["evaluate.metrics=[psnr]"],
        "report": ["report.num_images=1"],
        "translate": ["image=photo.png", "prompt=make it blue", "output.path=made"],
        "export": ["export.path=small", "export.host=true", "dtype=float16"],
        "study": ["study=stochastic", "study.num_inference_steps=[1]", "study.num_searched=1", "study.num_evaluated=2"],
        "compare": ["recipe=none", *few_rows, "compare.num_searched=1", "compare.num_evaluated=2"],
        "compress": ["compress.stages=[depth_search,evaluate,report]", psnr, "evaluate.metrics=[psnr]"],
        "plan": ["recipe=none", *few_plans],
        "convert": None,
    }
    assert set(commands) == {name.replace("_", "-") for name in registry.names("command")}
    for command, arguments in commands.items():
        if arguments is not None:
            result = idc(command, *common, *arguments)
            assert result.code == 0, f"{command}: {result.err}"
    result = idc("translate", "model.path=small", "image=photo.png", "prompt=make it blue", "output.path=again")
    assert result.code == 0, result.err
    assert len({hashlib.sha256(Path(f"{f}/photo.png").read_bytes()).hexdigest() for f in ("made", "again")}) <= 2
