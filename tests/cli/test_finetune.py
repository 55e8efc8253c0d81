"""`idc finetune`: what it leaves, interruptions that change nothing, processes that change nothing."""

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import idcompress
from idcompress import Recipe
from idcompress.adapters import training
from idcompress.adapters.unet import cut_ends
from idcompress.bench.training_samples import TrainingSamples
from idcompress.runs.files import file_digest
from idcompress.stages import finetune

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
def test_a_fine_tuned_recipe_loads_and_says_where_it_comes_from(idc, command, task, work, random_model, monkeypatch):
    made = []
    monkeypatch.setattr(finetune, "TrainingSamples", lambda *a, **k: made.append(TrainingSamples(*a, **k)) or made[-1])
    result = idc(*command(task), "hydra.run.dir=run", "trainer.max_steps=2", "trainer.val_check_interval=1")
    assert result.code == 0, result.err
    assert [samples.sharpened for samples in made] == [task == "stablesr"]
    run = work / "run"
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["cut"]["depth"] == 5
    assert recipe["parent"]
    entry = recipe["provenance"][-1]
    assert entry["stage"] == "finetune"
    assert (entry["steps"], entry["batch_size"], entry["loss"]) == (2, 4, "task")
    side = {"controlnet": "controlnet", "stablesr": "structure_encoder"}.get(task)
    trained = ["unet", side] if side else ["unet"]
    assert list(recipe["weights"]) == trained == entry["components"]
    pipeline = idcompress.load_pipeline(run)
    for name, weights in recipe["weights"].items():
        assert file_digest(run / weights["file"]) == weights["sha256"]
        ours, saved = getattr(pipeline, name).state_dict(), load_file(run / weights["file"])
        assert ours.keys() == saved.keys()
        assert all((ours[k] == saved[k]).all() for k in saved)
    if side:  # as the original: the side network, and of the U-Net what the original trains and the ends of the cut
        whole = load_file(random_model(task) / "unet" / "diffusion_pytorch_model.safetensors")
        tuned = load_file(run / "unet.safetensors")
        changed = {name for name in tuned if not torch.equal(tuned[name], whole[name])}
        ends = {name for name in tuned if name.startswith(f"{cut_ends(pipeline.unet)[0]}.")}
        own = {name for name in tuned if ".spade." in name} if task == "stablesr" else set()
        assert 0 < len(changed) <= len(ends | own) < len(tuned) and changed <= ends | own
        assert changed & ends and (not own or changed & (own - ends))
        side_whole = load_file(next((random_model(task) / side).glob("*.safetensors")))
        side_tuned = load_file(run / f"{side}.safetensors")
        assert sum(not torch.equal(side_tuned[n], side_whole[n]) for n in side_tuned) > 0.9 * len(side_tuned)
    for step in (0, 1, 2):
        with Image.open(run / "previews" / f"step_{step:06d}.png") as image:
            assert len(image.getcolors(100_000)) > 100
    assert (run / "recovery.png").stat().st_size > 1000
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["before"].keys() == metrics["after"].keys() == {"psnr"}
    assert metrics["before"] != metrics["after"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("[unet.upblocks.*]", "'unet.upblocks.*' matches no parameter of"),
        ("[vae.*]", "chooses nothing of unet to train"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(idc, command, patterns, said):
    result = idc(*command(), f"finetune.parameters={patterns}")
    assert result.code == 2 and said in result.err, result.err


def test_later_stages_carry_the_weights_along(idc, command, work):
    assert idc(*command(), "hydra.run.dir=tuned", "trainer.max_steps=1", "trainer.val_check_interval=1").code == 0
    search = ["tsopt", "recipe=tuned/recipe.json", "hydra.run.dir=found", "num_inference_steps=2"]
    result = idc(*search, "tsopt.num_inference_steps=2", "tsopt.num_samples=1", "tsopt.reference_steps=2")
    assert result.code == 0, result.err
    recipe = json.loads((work / "found" / "recipe.json").read_text())
    assert file_digest(work / "found" / "unet.safetensors") == recipe["weights"]["unet"]["sha256"]
    assert "fine-tuned at depth 5" in idc(*search[:2], "depth=4").err


def at_step(patch, step, act):
    """Make the training step of one step number do something else first."""
    original = training.Finetuning.training_step

    def training_step(self, batch, index):
        if self.global_step == step:
            act()
        return original(self, batch, index)

    patch.setattr(training.Finetuning, "training_step", training_step)


def interrupt():
    raise KeyboardInterrupt


def fill_disk():
    """Let no file grow beyond 100 kB: a checkpoint fails to be written half-way, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_disturbed_run_ends_where_an_undisturbed_one_does(idc, command, work, monkeypatch):
    """Stopped in the middle of an epoch, in a validation and by a full disk: bit for bit, average included."""
    arguments = command("ip2p", "trainer.val_check_interval=2")
    assert idc(*arguments, "hydra.run.dir=whole").code == 0
    whole = load_file(work / "whole" / "unet.safetensors")

    def check(name, step):
        run = work / name
        assert {path.name for path in (run / "checkpoints").iterdir()} - {"previous.ckpt"} == {"last.ckpt"}
        assert not (run / "recipe.json").exists()
        result = idc(*arguments, f"hydra.run.dir={name}")
        assert result.code == 0, result.err
        assert f"continuing at step {step} of {name}/checkpoints/last.ckpt" in result.out
        broken = load_file(run / "unet.safetensors")
        assert all((whole[k] == broken[k]).all() for k in whole)
        assert losses(work / "whole") == losses(run)
        assert (work / "whole" / "trace.jsonl").read_text() == (run / "trace.jsonl").read_text()
        assert not (run / "checkpoints").exists()

    with monkeypatch.context() as patch:
        at_step(patch, 5, interrupt)
        result = idc(*arguments, "hydra.run.dir=stopped")
    assert result.code == 130
    assert "the same command continues" in result.err
    check("stopped", 4)

    with monkeypatch.context() as patch:
        look = finetune.Preview.__call__
        patch.setattr(finetune.Preview, "__call__", lambda self, n: interrupt() if n == 4 else look(self, n))
        assert idc(*arguments, "hydra.run.dir=looking").code == 130
    check("looking", 4)

    with monkeypatch.context() as patch:
        at_step(patch, 3, fill_disk)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            result = idc(*arguments, "hydra.run.dir=full")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "writing failed (File too large); make room and repeat the command" in result.err
    check("full", 2)


def test_a_broken_checkpoint_falls_back_to_the_one_before(idc, command, work, monkeypatch):
    arguments = command("ip2p", "trainer.max_steps=4", "trainer.val_check_interval=4", "finetune.ema_decay=null")
    assert idc(*arguments, "finetune.checkpoint_every_n_steps=1", "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        at_step(patch, 3, interrupt)
        assert idc(*arguments, "finetune.checkpoint_every_n_steps=1", "hydra.run.dir=run").code == 130
    folder = work / "run/checkpoints"
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-5000])
    result = idc(*arguments, "finetune.checkpoint_every_n_steps=1", "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "warning: run/checkpoints/last.ckpt is not a whole checkpoint (" in result.out
    assert "the one before it is taken" in result.out
    assert "continuing at step 2 of run/checkpoints/previous.ckpt" in result.out
    assert file_digest(work / "run/unet.safetensors") == file_digest(work / "whole/unet.safetensors")


def test_checkpoints_that_are_all_broken_are_one_line(idc, command, work, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 3, interrupt)
        assert idc(*command(), "hydra.run.dir=run").code == 130
    last = work / "run/checkpoints/last.ckpt"
    last.write_bytes(b"nothing")
    result = idc(*command(), "hydra.run.dir=run")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "remove run/checkpoints to train from the start" in result.err


@pytest.mark.parametrize("loss", ["task", "distill"])
def test_a_large_one_says_what_it_needs_before_it_starts(idc, command, monkeypatch, loss):
    """Weights, gradients, two moments and the average, the frozen networks, and two files on the disk."""
    monkeypatch.setattr(finetune, "SAID_FROM", 0)
    monkeypatch.setattr(training.Finetuning, "setup", lambda self, stage: interrupt())
    result = idc(*command("ip2p", f"loss={loss}"))
    assert result.code == 130
    line = next(line for line in result.out.splitlines() if line.startswith("it needs "))
    assert "of 2 images at a time" in line  # four an update, in two parts
    assert "finetune.gradient_checkpointing=true" in line


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
    assert process.wait(600) in {signal.SIGTERM: (143,), signal.SIGKILL: (-9,), signal.SIGINT: (130,)}[sent]
    subprocess.run([*arguments, "hydra.run.dir=broken"], check=True, cwd=tmp_path, env=environment)
    assert file_digest(tmp_path / "whole/unet.safetensors") == file_digest(tmp_path / "broken/unet.safetensors")


def test_a_checkpoint_of_another_depth_or_none_at_all(idc, command, work):
    one = ("trainer.max_steps=1", "trainer.val_check_interval=1", "finetune.keep_checkpoint=true")
    assert idc(*command(), "hydra.run.dir=run", *one).code == 0
    checkpoint = "finetune.checkpoint=run/checkpoints/last.ckpt"
    result = idc(*command(), checkpoint, "depth=4")
    assert result.code == 2
    assert "is of depth=5, this run is of depth=4" in result.err
    result = idc(*command(), checkpoint, "trainer.max_steps=1", "hydra.run.dir=again")  # nothing left to do
    assert result.code == 0, result.err
    assert file_digest(work / "again/unet.safetensors") == file_digest(work / "run/unet.safetensors")
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
        (["finetune.schedule=linear", "trainer.max_steps=-1", "trainer.max_time=00:01:00:00"], "set trainer.max_steps"),
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


def test_the_start_is_kept_where_no_validation_beats_it(idc, command, work):
    result = idc(*command("ip2p", "depth=11", "finetune.keep=best", "trainer.max_steps=3"), "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert "no validation beats the start" in result.out
    recipe = json.loads((work / "run/recipe.json").read_text())
    assert (recipe["cut"]["depth"], recipe["weights"]) == (11, {})
    assert recipe["provenance"][-1]["kept_step"] == 0


@pytest.mark.parametrize(("rate", "depth"), [(3e-4, 2), (1e-7, 3)], ids=["mended", "not mended"])
def test_compress_keeps_a_level_fewer_only_where_training_mends_it(idc, random_model, work, rate, depth):
    """On the random model depth 3 has 34.1 dB, depth 2 31.3 and after a few updates 33.8."""
    keys = ["compress.stages=[depth_search,finetune]", "compress.fewer_levels=1", "depth_search.min_depth=1"]
    keys += ["depth_search.thresholds=[{metric: psnr, bound: 32.5}]", "finetune.keep=auto", "loss=distill"]
    keys += ["loss.task=0", f"finetune.optimizer.lr={rate}", "trainer.max_steps=16", "finetune.num_samples=2"]
    common = ("compress", "experiment=smoke", f"model.path={random_model('ip2p')}", *keys, "hydra.run.dir=run")
    result = idc(*common, "trainer.val_check_interval=8", "finetune.num_inference_steps=4")
    assert result.code == 0, result.err
    recipe = json.loads((work / "run/recipe.json").read_text())
    metrics = json.loads((work / "run/finetune/metrics.json").read_text())
    assert recipe["cut"]["depth"] == depth
    assert [entry["depth"] for entry in recipe["provenance"]] == [3, 2]
    assert recipe["parent"] == Recipe.load(work / "run/depth_search").digest
    assert metrics["kept_step"] == recipe["provenance"][1]["kept_step"]
    if depth == 2:
        assert "depth 2 holds the thresholds after fine-tuning" in result.out
        assert metrics["kept_step"] in (8, 16)
        assert file_digest(work / "run/unet.safetensors") == recipe["weights"]["unet"]["sha256"]
        assert idcompress.load_pipeline(work / "run").unet.config.depth == 2
    else:
        assert "depth 2 misses a threshold, fine-tuned too (psnr is 31." in result.out
        assert metrics["kept_step"] is None
        assert recipe["weights"] == {}


def test_keys_of_lightning_and_of_memory(idc, command, work):
    """Distillation with recomputed activations, split updates, another logger and a further argument of the Trainer."""
    logger = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: extra}"
    keys = ["loss=distill", "finetune.gradient_checkpointing=true", "+trainer.gradient_clip_algorithm=value"]
    keys += [f"+finetune.logger.extra={logger}", "trainer.max_steps=1", "finetune.ema_decay=null"]
    result = idc(*command("ip2p", *keys), "hydra.run.dir=run", "finetune.keep_checkpoint=true")
    assert result.code == 0, result.err
    rows = [list(csv.DictReader(path.open())) for path in sorted(Path().glob("**/metrics.csv"))]
    assert len(rows) == 2
    assert rows[0][0].keys() == rows[1][0].keys() >= {"loss", "loss_task", "loss_output", "loss_features"}
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("components.unet.") for name in state)  # no teacher


@pytest.mark.slow
def test_a_compiled_network(idc, command, work):
    result = idc(*command("ip2p", "finetune.compile=true", "trainer.max_steps=2"), "hydra.run.dir=run")
    assert result.code == 0, result.err
    assert idcompress.load_pipeline(work / "run").unet.config.depth == 5


def test_a_loss_that_is_no_number_is_one_line(idc, command, work):
    result = idc(*command("ip2p", "finetune.optimizer.lr=1e30"), "hydra.run.dir=run")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "the loss is nan at step" in result.err and "lower finetune.optimizer.lr" in result.err
    assert not (work / "run/recipe.json").exists()


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
    """Through the installed command and a sweep: the same samples, split, give the same losses and weights.

    The environment is that of a Slurm job with one task, in which Lightning would wait for Slurm to start the others.
    """
    assert idc(*command(), "hydra.run.dir=one").code == 0
    sweep = ["-m", "seed=0", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.sweep.dir=two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLURM_JOB_NAME": "finetune", "SLURM_JOB_ID": "7"}
    environment |= dict.fromkeys(("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"), "1")
    environment |= dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    done = subprocess.run([IDC, *command(), *sweep], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert idc(*command(), "seed=1", "trainer.max_steps=1", "hydra.run.dir=other").code == 0
    one, two, other = (losses(work / name) for name in ("one", "two/0", "other"))
    assert one.keys() == two.keys() == set(range(6))
    assert two == pytest.approx(one, rel=1e-5)
    assert other[0] != pytest.approx(one[0], rel=1e-3)  # another seed
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
    assert [process.wait(900) for process in processes] == [0, 0]
    assert (tmp_path / "nodes" / "recipe.json").is_file()
    assert len(losses(tmp_path / "nodes")) == 6


@pytest.mark.gpu
def test_sharded_training(idc, command):
    result = idc(*command(), "device=cuda", "trainer.strategy=fsdp", "finetune.ema_decay=null", "trainer.devices=1")
    assert result.code == 0, result.err
