"""Do easy instructions bear a deeper cut than hard ones"""

from typing import Any

from ..bench.comparison import only
from ..config import Config
from ..errors import IdcError
from ..runs.recipe import Recipe
from ..runs.run_dir import RunDir
from ..stages._lab import Lab, difference, series
from ..tasks._task import tasks_with
from ..types import Chart, Study

SOURCE = "Kim et al., Diffusion Model Compression for Image-to-Image Translation, ACCV 2024, Sec. S2, Fig. S1"
RETRIEVAL = {"easy": "edit_retrieval", "hard": "hard_edit_retrieval"}


def run(
    config: Config,
    recipe: Recipe,
    run_dir: RunDir,
    *,
    depths: list[int],
    num_inference_steps: int = 20,
    num_evaluated: int = 40,
    tolerance_db: float = 0.1,
) -> Study:
    """Cut the model to every depth and judge edits whose true result is known, the easy and the hard ones apart.

    Raises:
        IdcError: no instruction is known to be easy or hard.
    """
    lab = Lab(
        config, recipe, run_dir, num_evaluated=num_evaluated, unfitted="samples as many steps as its reference has"
    )
    examples = lab.benches["evaluate"].examples
    groups = {kind: [e.index for e in examples if kind in e.tags] for kind in RETRIEVAL}
    if not all(groups.values()):
        others = tasks_with(lambda task: RETRIEVAL.keys() <= {*task.tags})
        raise IdcError(
            f"study=instructions wants instructions of which some are easy and some are hard; task={config.task.name} "
            f"has none here; want {others} with its own instructions, and 20 images or more"
        )
    full, rows = lab.full(), []
    names = ["edit_psnr", *RETRIEVAL.values(), "psnr"]
    whole = full.measure("evaluate", num_inference_steps, names, (full, num_inference_steps))
    for depth in depths:
        values = lab.arm(depth).measure("evaluate", num_inference_steps, names, (full, num_inference_steps))
        for kind, indices in groups.items():
            edit, found, to_full = (only(values[name], indices) for name in ("edit_psnr", RETRIEVAL[kind], "psnr"))
            rows.append(
                {
                    "depth": depth,
                    "instructions": kind,
                    "images": len(indices),
                    "edits found": found.value,
                    "edit PSNR (dB)": edit.value,
                    "edit PSNR over full depth's (dB)": difference(
                        edit, only(whole["edit_psnr"], indices), config.seed
                    ),
                    "PSNR to full depth (dB)": to_full.value,
                }
            )
    by_kind = {kind: [row for row in rows if row["instructions"] == kind] for kind in groups}
    kept = {kind: _kept(found, lab.model.full_depth, tolerance_db) for kind, found in by_kind.items()}
    answer = "no gain from easy instructions alone"
    if kept["easy"] < kept["hard"]:
        answer = "easy instructions bear a deeper cut"
    elif kept["easy"] > kept["hard"]:
        answer = "hard instructions bear a deeper cut"
    return Study(
        rows,
        [
            Chart("depth", column, [series(kind, found, "depth", column) for kind, found in by_kind.items()])
            for column in ("edit PSNR over full depth's (dB)", "edits found")
        ],
        f"Down from full depth, edits stay as near to the truth to depth {kept['easy']} for easy instructions and to "
        f"depth {kept['hard']} for hard ones: {answer}.",
        [
            f"A loss of edit PSNR is one that the interval leaves no doubt of and that exceeds {tolerance_db:g} dB.",
            "An edit is found where, of the true results of all edits of the photograph and the photograph itself, the "
            "asked edit's is the nearest to the picture.",
            lab.images_note(),
        ],
    )


def _kept(rows: list[dict[str, Any]], full_depth: int, tolerance_db: float) -> int:
    """The last depth, going down, before edits first become worse by more than the tolerance."""
    kept = full_depth
    for row in sorted(rows, key=lambda row: -int(row["depth"])):
        change = row["edit PSNR over full depth's (dB)"]
        if change.get("verdict") == "worse" and change["mean"] < -tolerance_db:
            break
        kept = row["depth"]
    return kept
