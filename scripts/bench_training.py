"""Training throughput of the full and the pruned model, in one run: samples per second, their ratio, memory, stages.

    python -m scripts.bench_training --task ip2p --depth 9 --depth 6
    python -m scripts.bench_training --task ip2p --folder PIPELINE --depth 9 --batch 8 --device cuda --resolution 512

Times a whole update as `idc finetune` runs it: loading and cropping (one process), encoding by the frozen networks,
forward and backward, optimizer. Models take turns, the median over --repeats rounds counts. Loading is what the device
waits for only where it takes longer than the rest divided by finetune.num_workers.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from idcompress import registry
from idcompress.adapters import training
from idcompress.adapters.pipeline import native_size, with_copies
from idcompress.bench.training_samples import TrainingSamples
from idcompress.images.photo_sets import PhotographSet
from idcompress.sources.load import load_source


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def update(module: training.Finetuning, optimizer: torch.optim.Optimizer, batch: Any, device: str) -> dict[str, float]:
    """Seconds of encoding, forward and backward, and the optimizer, for one batch."""
    encode, seconds = module.task.encode_training, {}

    def timed(*arguments: Any) -> Any:
        synchronise(device)
        began = time.perf_counter()
        made = encode(*arguments)
        synchronise(device)
        seconds["encoding"] = time.perf_counter() - began
        return made

    module.task.encode_training = timed
    began = time.perf_counter()
    with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
        torch.stack(list(module.losses(batch).values())).sum().backward()
    synchronise(device)
    seconds["forward and backward"] = time.perf_counter() - began - seconds["encoding"]
    module.task.encode_training = encode
    began = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    synchronise(device)
    seconds["optimizer"] = time.perf_counter() - began
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="ip2p", choices=registry.names("task"))
    parser.add_argument("--folder", type=Path, help="a pipeline folder; default: the embedded model")
    parser.add_argument("--depth", type=int, action="append", help="repeat for several; default 9")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--resolution", type=int, help="px; default: the model's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    task = registry.load("task", args.task).Task()
    source = {"name": "tiny", "path": None if args.folder is None else str(args.folder)}
    model = load_source(args.task, source, device=args.device, dtype="float32", prune="depth_skip")
    photos: PhotographSet = registry.load("data", "photographs").load(None, "train")
    samples = TrainingSamples(
        task,
        photos,
        size=args.resolution or native_size(model.pipeline),
        count=len(photos),
        seed=0,
        prompts=[],
        flip=True,
    )
    modules, optimizers = {}, {}
    for depth in [model.full_depth, *(args.depth or [9])]:
        modules[depth] = training.Finetuning(
            task,
            with_copies(model.at(model.chosen(depth)), task.trained),
            None,
            trained=task.trained,
            identity={},
            weights={"task": 1.0, "output": 0.0, "features": 0.0},
            timesteps=range(model.process.num_train_timesteps),
            conditioning_dropout=task.conditioning_dropout,
            seed=0,
            optimizer=torch.optim.AdamW,
            schedule="constant",
            warmup_steps=0,
            preview=lambda step: {},
        ).to(args.device)
        optimizers[depth] = torch.optim.AdamW(modules[depth].components.parameters())
    times: dict[int, dict[str, list[float]]] = {depth: defaultdict(list) for depth in modules}
    peaks: dict[int, int] = {}
    for number in range(args.repeats + 1):  # the first round warms up
        began = time.perf_counter()
        examples = [samples(number * args.batch + i)[0] for i in range(args.batch)]
        loading = time.perf_counter() - began
        batch = training.TrainingBatch(list(range(args.batch)), examples, {})
        for depth, module in modules.items():
            if args.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            seconds = {"loading": loading, **update(module, optimizers[depth], batch, args.device)}
            if args.device.startswith("cuda"):
                peaks[depth] = torch.cuda.max_memory_allocated()
            for name, value in seconds.items() if number else ():
                times[depth][name].append(value)
    print(f"{args.task}, batch {args.batch}, {samples.size} px, {args.device}, torch {torch.__version__}")
    whole = {d: sum(statistics.median(v) for n, v in t.items() if n != "loading") for d, t in times.items()}
    for depth, parts in times.items():
        shares = ", ".join(f"{name} {statistics.median(v) / whole[depth]:.0%}" for name, v in parts.items())
        memory = f", peak {peaks[depth] / 2**30:.2f} GiB" if depth in peaks else ""
        ratio = whole[model.full_depth] / whole[depth]
        rate = f"{args.batch / whole[depth]:8.1f} samples/s, {ratio:.2f}x the full model's"
        print(f"depth {depth:>2}: {rate}{memory}; of an update: {shares}")
    if not peaks:
        print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
