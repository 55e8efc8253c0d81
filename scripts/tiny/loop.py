"""The training loop: one update, recorded on a GPU, repeated for a time budget."""

from __future__ import annotations

import argparse
import copy
import math
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .files import Log, hardware, load_checkpoint, read_json, save_checkpoint, write_json

CHECKPOINT_SECONDS = 60


@dataclass
class Job:
    """What is trained.

    Attributes:
        model: float32, trained where its parameters require gradients.
        draw: share of the budget spent -> a batch of tensors of fixed shapes; all chance is here.
        loss: (model, or its half-precision copy on a GPU; the batch) -> loss. The same arithmetic every time, so that a
            graph of it can be recorded and replayed.
        compiled: submodules worth compiling.
        report: called at the end with the averaged weights in place; its text is logged.
    """

    model: nn.Module
    draw: Callable[[float], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    compiled: tuple[str, ...] = ()
    report: Callable[[], str] | None = None


class Ema:
    """Exponential moving average of a module's parameters, with a decay that warms up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        torch._foreach_lerp_([self.shadow[name] for name, _ in trained], [value for _, value in trained], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]
        for name, value in state["shadow"].items():  # in place: they stay on the module's device
            self.shadow[name].copy_(value)


def cosine_lr(step: int, share: float, peak: float, warmup: int = 200, floor: float = 0.02) -> float:
    """Learning rate: a linear warm-up of `warmup` steps times half a cosine over the time budget.

    Args:
        step: optimizer steps done.
        share: share of the time budget spent, 0 to 1.
        peak: the highest rate.
        warmup: steps until the peak is reached.
        floor: the last rate as a share of `peak`.
    """
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return peak * cosine * min(1.0, (step + 1) / warmup)


class Step:
    """One update: forward and backward in half precision on a GPU, AdamW on float32 weights, recorded as a CUDA graph.

    What a GPU does faster (bfloat16 copy, graph, compiled networks) falls away on a CPU, and a recording that fails
    leaves the plain update.
    """

    def __init__(self, job: Job, lr: float, device: torch.device, log: Callable[[str], None]) -> None:
        self.job, self.device, self.log = job, device, log
        self.on_gpu = device.type == "cuda"
        self.worker = copy.deepcopy(job.model).bfloat16() if self.on_gpu else job.model
        self.masters = [p for p in job.model.parameters() if p.requires_grad]
        self.copies = [p for p in self.worker.parameters() if p.requires_grad]
        self.lr = torch.tensor(lr, device=device) if self.on_gpu else lr
        options: dict[str, Any] = {"capturable": True} if self.on_gpu else {}
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=self.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True, **options
        )
        self.graph: Any = None
        self.batch: tuple[Tensor, ...] = ()
        self.loss = torch.zeros((), device=device)

    def compile(self) -> None:
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs plainly
        for name in self.job.compiled:
            self.worker.get_submodule(name).compile(dynamic=False)

    def set_lr(self, lr: float) -> None:
        if self.on_gpu:
            self.lr.fill_(lr)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def load(self, optimizer: dict[str, Any]) -> None:
        """Go on from an optimizer's state, after the model's weights were loaded."""
        self.optimizer.load_state_dict(optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.copy_weights()

    @torch.no_grad()
    def copy_weights(self) -> None:
        if self.on_gpu:
            torch._foreach_copy_(self.copies, self.masters)

    def update(self) -> None:
        loss = self.job.loss(self.worker, *self.batch)
        loss.backward()
        if self.on_gpu:
            pairs = [(m, c) for m, c in zip(self.masters, self.copies, strict=True) if c.grad is not None]
            for master, _ in pairs:
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
            torch._foreach_copy_([m.grad for m, _ in pairs], [c.grad for _, c in pairs])
        nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        self.optimizer.step()
        self.copy_weights()
        for parameter in self.copies:
            parameter.grad = None
        self.loss.copy_(loss.detach())

    def __call__(self, share: float) -> None:
        batch = self.job.draw(share)
        if not self.on_gpu:
            self.batch = batch
            self.update()
        elif self.graph is None:
            self.batch = tuple(part.clone() for part in batch)
            self.record()
        else:
            for kept, part in zip(self.batch, batch, strict=True):
                kept.copy_(part)
            if self.graph:
                self.graph.replay()
            else:
                self.update()

    def record(self) -> None:
        """Three plain updates on a stream of their own, then the same one recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.update()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.graph = False
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.update()
            self.graph = graph
        except Exception:
            self.log(f"no CUDA graph, plain updates instead: {traceback.format_exc(limit=-3)}")
            with suppress(Exception):
                torch.cuda.synchronize()
            for parameter in self.copies:
                parameter.grad = None


def fit(args: argparse.Namespace, job: Job) -> None:
    """Train a job for a time budget; resumable, with averaged weights.

    Args:
        args: command (the checkpoint's name), work, seed, seconds, lr, batch, device, init.
    """
    folder, device, log = Path(args.work), device_of(args.device), Log()
    model = job.model.to(device)
    state = load_checkpoint(folder / f"{args.command}.pt")
    steps = samples = 0
    seconds = 0.0
    if state:
        model.load_state_dict(state["model"])
        steps, samples, seconds = state["steps"], state["samples"], state["seconds"]
    torch.manual_seed(args.seed + steps)
    step, ema = Step(job, args.lr, device, log), Ema(model, args.ema)
    if state:
        if "optimizer" in state:
            step.load(state["optimizer"])
        ema.load_state_dict(state["ema"])
    budget, samples_before = seconds + args.seconds, samples
    warm = folder / f"{args.command}.compiled.json"
    if step.on_gpu and warm.exists() and read_json(warm)["gain"] > 1.1:
        step.compile()
        log(f"{args.command}: compiled, {read_json(warm)}")
    last = saved = began = time.perf_counter()
    done = False
    losses: list[float] = []
    while not done:
        # 1. One step.
        share = seconds / budget
        step.set_lr(cosine_lr(steps, share, args.lr, args.warmup))
        step(share)
        ema.update(model)
        steps += 1
        samples += args.batch
        # 2. Time; the processor must not run far ahead of a GPU.
        if step.on_gpu and steps % 8 == 0:
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, last = seconds + now - last, now
        done = seconds >= budget
        if steps % args.log_every == 0 or done:
            losses.append(round(step.loss.item(), 4))
            rate = (samples - samples_before) / (now - began)
            log(f"{args.command} step {steps} samples {samples} loss {losses[-1]} {rate:.0f} samples/s")
        # 3. Checkpoint, at the end with a report on the averaged weights.
        if now - saved > CHECKPOINT_SECONDS or done:
            saved = now
            state = {
                "model": model.state_dict(),
                "optimizer": step.optimizer.state_dict(),
                "ema": ema.state_dict(),
                "steps": steps,
                "samples": samples,
                "seconds": seconds,
            }
            save_checkpoint(folder / f"{args.command}.pt", state)
            note = {
                "seed": args.seed,
                "steps": steps,
                "samples": samples,
                "batch": args.batch,
                "learning_rate": args.lr,
                "seconds": round(seconds),
                "samples_per_second": round((samples - samples_before) / (now - began)),
                "losses": losses,
                "hardware": hardware(device),
                "processes": 1,
                "started_from": args.init or "random weights",
            }
            write_json(folder / f"{args.command}.json", note)
    if job.report is not None:
        model.load_state_dict(ema.shadow)
        with torch.no_grad():
            log(f"{args.command} {job.report()}")


def warm(args: argparse.Namespace, job: Job) -> None:
    """Compile a job's networks, so that later processes find them in the cache, and time plain against compiled."""
    device, log = device_of(args.device), Log()
    job.model.to(device)
    batch = job.draw(0.0)
    took = {}
    for name in ("plain", "compiled"):
        step = Step(job, args.lr, device, log)
        step.batch = batch
        began = time.perf_counter()
        if name == "compiled":
            step.compile()
        for _ in range(3):
            step.update()
        if step.on_gpu:
            torch.cuda.synchronize()
        first = time.perf_counter() - began
        if step.on_gpu:
            step.record()
        began = time.perf_counter()
        for _ in range(8):
            step.graph.replay() if step.graph else step.update()
        if step.on_gpu:
            torch.cuda.synchronize()
        took[name] = (time.perf_counter() - began) / 8
        del step
    result = {"gain": took["plain"] / took["compiled"], "compiling_seconds": first, "milliseconds": 1e3 * took["plain"]}
    write_json(Path(args.work) / f"{args.command}.compiled.json", result)
    log(f"{args.command}: compiling {result}")


def train(job_of: Callable[[argparse.Namespace], Job], args: argparse.Namespace) -> None:
    began = time.perf_counter()
    if args.warm:
        warm(args, job_of(args))
        return
    job = job_of(args)
    if getattr(args, "starting_counts", False):
        args.seconds = max(1.0, args.seconds - (time.perf_counter() - began))
    fit(args, job)


def device_of(name: str) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
