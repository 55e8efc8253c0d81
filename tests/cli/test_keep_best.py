"""finetune.keep=best is decided by a metric that has something to compare with; the start never wins by default."""

import json
from pathlib import Path

import pytest

SMALL = (
    "recipe=none",
    "depth=5",
    "loss=task",
    "trainer.max_steps=1",
    "trainer.val_check_interval=1",
    "finetune.batch_size=1",
    "finetune.warmup_steps=0",
    "finetune.num_samples=1",
    "finetune.num_inference_steps=1",
    "hydra.run.dir=run",
)
# No computable edit, and a task without true results.
WITHOUT_TRUTH = {"ip2p": ["prompt=make it snowy"], "controlnet": ["prompt=a photograph"]}


@pytest.mark.parametrize("task", WITHOUT_TRUTH)
def test_without_a_true_result_there_is_no_best(idc, random_model, task):
    arguments = (f"task={task}", f"model.path={random_model(task)}", *SMALL, *WITHOUT_TRUTH[task])
    result = idc("finetune", *arguments, "finetune.keep=best", "finetune.metrics=[edit_psnr]")
    assert result.code == 2
    (line,) = result.err.splitlines()
    if task == "ip2p":  # whose training cannot begin either
        assert line.startswith("idc: error: the true result of 'make it snowy'") and "training wants it" in line
    else:
        assert line.startswith(
            "idc: error: finetune.keep=best judges validations by edit_psnr, which has nothing to compare"
        )
        assert line.endswith("name another first in finetune.metrics, or set finetune.keep=last")
    assert not Path("run/recipe.json").exists()
    assert "no validation beats the start" not in result.out


def test_another_metric_first_decides(idc, random_model):
    arguments = ("task=controlnet", f"model.path={random_model('controlnet')}", *SMALL, *WITHOUT_TRUTH["controlnet"])
    result = idc("finetune", *arguments, "finetune.keep=best", "finetune.metrics=[psnr,edit_psnr]")
    assert result.code == 0, result.err
    rows = [json.loads(row) for row in Path("run/trace.jsonl").read_text().splitlines()]
    assert [row["metrics"]["edit_psnr"] for row in rows] == [None, None]
    assert all("edit_psnr" in row["notes"] for row in rows)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["kept_step"] == (1 if rows[1]["metrics"]["psnr"] > rows[0]["metrics"]["psnr"] else 0)
    assert "edit_psnr -" in result.out
