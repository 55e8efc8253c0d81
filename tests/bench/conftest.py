"""What several tests of benches share: one bench per task, whose model is loaded once."""

import pytest
import torch

from idcompress import registry
from idcompress.bench.bench import Bench
from idcompress.sources.load import load_source
from idcompress.types import Example


@pytest.fixture(scope="session")
def bench_of(random_model):
    """task -> a bench of two images over a random pipeline."""
    made = {}

    def bench(task):
        if task not in made:
            source, px = {"name": "random", "path": str(random_model(task))}, 64 if task == "stablesr" else 32
            model = load_source(task, source, device="cpu", dtype="float32")
            images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
            examples = [Example(i, f"{i}", "", image, "darker", condition=image) for i, image in enumerate(images)]
            made[task] = Bench(registry.load("task", task).Task(), model, examples, {})
        return made[task]

    return bench
