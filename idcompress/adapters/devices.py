"""Several processes for one run, a device each, by Lightning Fabric.

The first process starts the others of its machine by repeating its own command line, unless a cluster's launcher has
started them all, and joins them to one group. They talk by objects on the CPU, whatever their devices are.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.strategies import DDPStrategy

import __main__

from ..errors import IdcError, LostProcessError
from ..runs.places import places_as_they_were, started_by_a_cluster
from ..runs.timing import part
from .pipeline import choose_device

T = TypeVar("T")

# Set for a process that another one has started: whose death it does not outlive.
_PARENT = "IDC_PARENT"
_MEETING_S = 600.0  # after which processes that have not come are not waited for any more
# The group itself waits for ever: one process may train or measure for hours, and one that dies is seen otherwise.
_FOREVER = timedelta(days=365)
_LAST_WORDS_S = 10.0  # for processes that end by an error of their own to say it


class Processes:
    """The group, as `runs.ranks.Group` has it.

    Attributes:
        rank, size: this process's place, and how many there are.
        device: this process's own.
        children: the processes that this one has started.
    """

    def __init__(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        self.children = children
        self.rank, self.size, self.device = 0, 1, "cpu"
        self._parent = os.environ.get(_PARENT)

    def join(self, kind: str, devices: int, num_nodes: int) -> None:
        """Meet the others.

        Raises:
            IdcError: they do not come, or the cluster has started another number of them.
        """
        ours = bool(self.children) or not started_by_a_cluster()
        strategy = DDPStrategy(process_group_backend="gloo", timeout=_FOREVER)
        try:
            fabric = Fabric(
                accelerator=kind,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                plugins=[LightningEnvironment()] if ours else None,
            )
            self._waiting(fabric.launch, _MEETING_S)
        except (ValueError, RuntimeError) as error:
            raise IdcError(f"devices={devices} num_nodes={num_nodes}: {error}") from None
        except TimeoutError:
            raise IdcError(
                f"devices={devices} num_nodes={num_nodes}: the other processes have not come within "
                f"{_MEETING_S / 60:.0f} minutes; start the command on every node"
            ) from None
        self.rank, self.size, self.device = fabric.global_rank, fabric.world_size, str(fabric.device)
        if fabric.device.type == "cuda":
            torch.cuda.set_device(fabric.device)  # which is a thread's own, and the meeting was in another

    def gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        self._talking(lambda: torch.distributed.all_gather_object(found, value))
        return found

    def told(self, value: Any) -> Any:
        box = [value]
        self._talking(lambda: torch.distributed.broadcast_object_list(box, src=0))
        return box[0]

    def check(self) -> None:
        for place, child in enumerate(self.children, start=1):
            if child.poll() is not None:
                raise LostProcessError(_lost(place, len(self.children) + 1, child.returncode))
        if self._parent is not None and os.getppid() != int(self._parent):
            raise LostProcessError("the process that started this one is gone")

    def _talking(self, call: Callable[[], None]) -> None:
        try:
            self._waiting(call)
        except RuntimeError as error:  # the connection is closed
            if not self.children:
                raise LostProcessError(f"another process of this run has ended ({_first_line(error)})") from None
            deadline = time.monotonic() + _LAST_WORDS_S
            while time.monotonic() < deadline:
                self.check()
                time.sleep(0.05)
            raise

    def _waiting(self, call: Callable[[], T], limit_s: float = float("inf")) -> T:
        """What a call gives that waits for other processes, while a signal or the death of one can end the wait."""
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(call())
            except BaseException as error:
                failed.append(error)

        thread, began = threading.Thread(target=run, daemon=True), time.monotonic()
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            if thread.is_alive():
                self.check()
                if time.monotonic() - began > limit_s:
                    raise TimeoutError
        if failed:
            raise failed[0]
        return done[0]


@contextmanager
def together(device: str, devices: int, num_nodes: int) -> Iterator[Processes]:
    """The processes of a run, from their start to their end. Whatever ends this one ends those that it has started.

    Args:
        device: as configured.
        devices: of every machine.
        num_nodes: machines, on each of which the command was started.

    Raises:
        IdcError: there are not so many devices, or not all processes come.
        LostProcessError: one of them died.
    """
    kind = kind_of(device, devices)
    quiet_lightning()
    with places_as_they_were():
        starts_them = "LOCAL_RANK" not in os.environ and not started_by_a_cluster()
        group = Processes(_started(devices, num_nodes) if starts_them else [])
        limit_s = _LAST_WORDS_S
        try:
            with part("start"):
                group.join(kind, devices, num_nodes)
            yield group
        except (KeyboardInterrupt, SystemExit):
            limit_s = 0.0
            raise
        finally:
            _ended(group.children, limit_s)


def kind_of(device: str, devices: int) -> str:
    """The accelerator that a configured device means for several processes.

    Raises:
        IdcError: it names one device, or there are not so many.
    """
    chosen = choose_device(device).partition(":")[0]
    if device.partition(":")[2]:
        raise IdcError(f"devices={devices} takes the first {devices} GPUs, and device={device} names one; drop one")
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(chosen)
    if there is not None and devices > there:
        have = f"there {'is' if there == 1 else 'are'} {there}"
        raise IdcError(f"devices={devices} of device={chosen}, and {have} here; lower it, or use device=cpu")
    return chosen


def quiet_lightning() -> None:
    """Lightning's own lines off: under Hydra they come twice, and tips are no news."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()


def _started(devices: int, num_nodes: int) -> list[subprocess.Popen[bytes]]:
    """The further processes of this machine: the same command line, with their places in the environment.

    They are in sessions of their own, so that Ctrl-C reaches them by way of this process alone.
    """
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    os.environ.setdefault("NODE_RANK", "0")
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(devices * num_nodes)}
    spec = __main__.__spec__
    program = [sys.argv[0]] if spec is None else ["-m", spec.name]
    return [
        subprocess.Popen(
            [sys.executable, *program, *sys.argv[1:]],
            env=os.environ | {"LOCAL_RANK": str(place), _PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for place in range(1, devices)
    ]


def _ended(children: Sequence[subprocess.Popen[bytes]], limit_s: float) -> None:
    """Wait for processes to end by themselves, and after a while end them."""
    deadline = time.monotonic() + limit_s
    try:
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()  # they write nothing, so that nothing is lost
            child.wait()


def _lost(place: int, number: int, code: int) -> str:
    """How a process died, in words."""
    try:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    except ValueError:
        how = f"was killed by signal {-code}"
    hint = ", as the system does where memory is full" if code == -signal.SIGKILL else ""
    return f"process {place + 1} of {number} {how}{hint}; the same command continues what it had begun"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
