"""`idc finetune`: what it leaves, interruptions that change nothing, processes that change nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import idcompress
from idcompress.adapters import training
from idcompress.artifacts.files import file_digest

IDC = Path(sys.executable).with_name("idc")


@pytest.fixture
def command(random_model):
    """A fine-tuning of seconds; four images an update on three photographs, so that every update spans two epochs."""

    def arguments(task="ip2p", *more):
        return [
            "finetune",
            f"task={task}",
            f"model.path={random_model(task)}",
            "recipe=none",
            "depth=5",
            "loss=task",
            "trainer.max_steps=6",
            "trainer.accumulate_grad_batches=2",
            "trainer.val_check_interval=3",
            "trainer.log_every_n_steps=1",
            "finetune.checkpoint_every_n_steps=2",
            "finetune.batch_size=4",
            "finetune.warmup_steps=2",
            "finetune.num_samples=1",
            "finetune.num_inference_steps=2",
            *more,
        ]

    return arguments


@pytest.fixture
def work(idc):
    """The folder in which `idc` runs."""
    return Path.cwd()


def losses(run):
    rows = [row for path in sorted(run.glob("logs/*/metrics.csv")) for row in csv.DictReader(path.open())]
    return {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]}


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_a_fine_tuned_recipe_loads_and_says_where_it_comes_from(idc, command, task, work):
    result = idc(*command(task), "hydra.run.dir=run", "trainer.max_steps=2", "trainer.val_check_interval=1")
    assert result.code == 0, result.err
    run = work / "run"
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["depth"] == 5
    assert recipe["parent"]
    entry = recipe["provenance"][-1]
    assert entry["stage"] == "finetune"
    assert (entry["steps"], entry["batch_size"], entry["loss"]) == (2, 4, "task")
    trained = {"controlnet": ["unet", "controlnet"]}.get(task, ["unet"])
    assert list(recipe["weights"]) == trained == entry["components"]
    pipeline = idcompress.load_pipeline(run)
    for name, weights in recipe["weights"].items():
        assert file_digest(run / weights["file"]) == weights["sha256"]
        ours, saved = getattr(pipeline, name).state_dict(), load_file(run / weights["file"])
        assert ours.keys() == saved.keys()
        assert all((ours[k] == saved[k]).all() for k in saved)
    for step in (0, 1, 2):
        with Image.open(run / "previews" / f"step_{step:06d}.png") as image:
            assert len(image.getcolors(100_000)) > 100
    assert (run / "recovery.png").stat().st_size > 1000
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys() == {"psnr"}
    assert metrics["before"] != metrics["after"]


def test_later_stages_carry_the_weights_along(idc, command, work):
    assert idc(*command(), "hydra.run.dir=tuned", "trainer.max_steps=1", "trainer.val_check_interval=1").code == 0
    search = ["tsopt", "recipe=tuned/recipe.json", "hydra.run.dir=found", "num_inference_steps=2"]
    result = idc(*search, "tsopt.num_inference_steps=2", "tsopt.num_samples=1", "tsopt.reference_steps=2")
    assert result.code == 0, result.err
    recipe = json.loads((work / "found" / "recipe.json").read_text())
    assert file_digest(work / "found" / "unet.safetensors") == recipe["weights"]["unet"]["sha256"]
    assert "fine-tuned at depth 5" in idc(*search[:2], "depth=4").err


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(idc, command, work, monkeypatch):
    """Ctrl-C in the middle of an epoch and of a checkpoint interval; bit for bit, average included."""
    assert idc(*command(), "hydra.run.dir=whole").code == 0
    step = training.Finetuning.training_step

    def interrupted(self, batch, index):
        if self.global_step == 5:
            raise KeyboardInterrupt
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(training.Finetuning, "training_step", interrupted)
        result = idc(*command(), "hydra.run.dir=broken")
    assert result.code == 130
    assert "the same command continues" in result.err
    assert not (work / "broken" / "recipe.json").exists()
    result = idc(*command(), "hydra.run.dir=broken")
    assert result.code == 0, result.err
    assert "continuing at step 4 of broken/checkpoints/last.ckpt" in result.out
    whole, broken = (load_file(work / name / "unet.safetensors") for name in ("whole", "broken"))
    assert all((whole[k] == broken[k]).all() for k in whole)
    assert losses(work / "whole") == losses(work / "broken")
    traces = [(work / name / "trace.jsonl").read_text() for name in ("whole", "broken")]
    assert traces[0] == traces[1]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_loses_nothing(command, sent, tmp_path):
    """The installed command, killed once its first checkpoint lies there, then repeated."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(IDC), *command(), "trainer.max_steps=30", "trainer.val_check_interval=30"]
    subprocess.run([*arguments, "hydra.run.dir=whole"], check=True, cwd=tmp_path, env=environment)
    # A shell's background job ignores Ctrl-C, and so would its children.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([*arguments, "hydra.run.dir=broken"], cwd=tmp_path, env=environment, preexec_fn=default)
    while not (tmp_path / "broken" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(60) in {signal.SIGTERM: (143,), signal.SIGKILL: (-9,), signal.SIGINT: (130,)}[sent]
    subprocess.run([*arguments, "hydra.run.dir=broken"], check=True, cwd=tmp_path, env=environment)
    assert file_digest(tmp_path / "whole/unet.safetensors") == file_digest(tmp_path / "broken/unet.safetensors")


def test_a_checkpoint_of_another_depth_or_none_at_all(idc, command, work):
    assert idc(*command(), "hydra.run.dir=run", "trainer.max_steps=1", "trainer.val_check_interval=1").code == 0
    checkpoint = "finetune.checkpoint=run/checkpoints/last.ckpt"
    result = idc(*command(), checkpoint, "depth=4")
    assert result.code == 2
    assert "is of depth=5, this run is of depth=4" in result.err
    torn = work / "torn.ckpt"
    torn.write_bytes((work / "run/checkpoints/last.ckpt").read_bytes()[:1000])
    assert "not a whole checkpoint" in idc(*command(), f"finetune.checkpoint={torn}").err
    assert "no such file" in idc(*command(), "finetune.checkpoint=gone.ckpt").err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["finetune.components=[unett]"], "has no network 'unett'; it has"),
        (["finetune.batch_size=3"], "finetune.batch_size=3 does not divide"),
        (["+trainer.nonsense=1"], "trainer: "),
        (["finetune.optimizer._target_=torch.optim.Adamm"], "finetune.optimizer: "),
        (["finetune.schedule=cosin"], "did you mean 'cosine'"),
        (["finetune.schedule=linear", "trainer.max_steps=-1"], "set trainer.max_steps"),
        (["finetune.resolution=100"], "finetune.resolution must be a multiple of 32 px, got 100"),
        (["trainer.strategy=fsdp"], "finetune.ema_decay=null"),
        (["loss=distil"], "did you mean 'distill'"),
        (["prompt=paint it"], "true result of 'paint it'"),
    ],
)
def test_mistakes_are_one_line(idc, command, arguments, wanted):
    result = idc(*command(), *arguments)
    assert result.code == 2, result.err
    assert wanted in result.err
    assert result.err.count("\n") == 1


def test_a_damaged_photograph_is_named_and_too_many_stop(idc, command, work):
    photos = work / "photos"
    photos.mkdir()
    for i in range(6):
        Image.radial_gradient("L").convert("RGB").rotate(i * 30).save(photos / f"{i}.png")
    (photos / "0.png").write_bytes((photos / "0.png").read_bytes()[:500])
    result = idc(*command(), f"data.path={photos}", "data.split=all")
    assert result.code == 2
    assert "0 is left out: " in result.out
    assert "1 of 6 photographs cannot be read, more than 1 %: 0;" in result.err


def test_two_processes_train_what_one_does(idc, command, work):
    """Through the installed command and a sweep: the same samples, split, give the same losses and weights."""
    assert idc(*command(), "hydra.run.dir=one").code == 0
    sweep = ["-m", "seed=0,1", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.sweep.dir=two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([IDC, *command(), *sweep], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two, other = (losses(work / name) for name in ("one", "two/0", "two/1"))
    assert one.keys() == two.keys() == set(range(6))
    assert two == pytest.approx(one, rel=1e-5)
    assert other != pytest.approx(one, rel=1e-3)  # another seed
    ours, theirs = (load_file(work / name / "unet.safetensors") for name in ("one", "two/0"))
    assert max((ours[k] - theirs[k]).abs().max() for k in ours) < 1e-4


@pytest.mark.slow
def test_two_nodes(command, tmp_path):
    """Each node is started by hand, as a cluster's launcher does, with its place in environment variables."""
    arguments = [IDC, *command(), "trainer.num_nodes=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    processes = []
    for node in ("0", "1"):
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29431",
            "NODE_RANK": node,
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
        }
        processes.append(subprocess.Popen([*arguments, "hydra.run.dir=nodes"], cwd=tmp_path, env=environment))
    assert [process.wait(300) for process in processes] == [0, 0]
    assert (tmp_path / "nodes" / "recipe.json").is_file()
    assert len(losses(tmp_path / "nodes")) == 6


@pytest.mark.gpu
def test_sharded_training(idc, command):
    result = idc(*command(), "device=cuda", "trainer.strategy=fsdp", "finetune.ema_decay=null", "trainer.devices=1")
    assert result.code == 0, result.err
