"""Measure an embedded model on public photographs that no training saw, and write its model card.

    python -m scripts.eval_tiny --task ip2p         # figures into model_card.json, README.md from it
    python -m scripts.eval_tiny --task controlnet
    python -m scripts.eval_tiny --task stablesr --lpips ALEXNET   # inpaint and high_frequency likewise
    python -m scripts.eval_tiny --task ip2p --guidance 1,1 2,1 3,1.2   # compare guidance on crops of the training pool

Guidance is chosen on crops of the training photographs that were kept out of training, never on the public ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from idcompress import registry
from idcompress.adapters.unet import depth_skip, full_depth
from idcompress.bench.translate import translate, uniform_plan
from idcompress.core.timestep_search import gamma_timesteps
from idcompress.images.canny import canny
from idcompress.images.captions import caption, caption_facts, facts_in_prompt
from idcompress.images.degrade import degrade
from idcompress.images.edits import EDITS, nearest_results
from idcompress.images.photo_sets import packaged
from idcompress.metrics import lpips
from idcompress.metrics.canny_f1 import edge_f1
from idcompress.models.stablesr import StableSRPipeline
from idcompress.models.tiny.build import STABLESR_PX
from idcompress.types import Batch, Example
from scripts.tiny.files import read_json, write_json
from scripts.tiny.photos import CROP_PX, as_image, cut_crops, list_photos, psnr

TASKS = ("ip2p", "controlnet", "stablesr", "inpaint", "high_frequency")
# Crops of each photograph: share of the shorter side, and the position of the crop in what is left, both from 0 to 1.
PLACES = ((1.0, 0.5, 0.5), (0.6, 0.2, 0.3), (0.6, 0.8, 0.7), (0.4, 0.5, 0.45))


def size_of(pipe: Any) -> int:
    """Side of the pictures that a packed model was trained on, px."""
    return int(pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1))


def public_crops(places: int = len(PLACES), size: int = CROP_PX) -> tuple[Tensor, list[str]]:
    """Crops of the nine public photographs, (9 * places, 3, size, size) in [0, 1], place by place, and their names."""
    from PIL import Image

    crops, names = [], []
    for share, across, down in PLACES[:places]:
        for photo in (*packaged("search"), *packaged("evaluate")):
            image = photo.open()
            side = share * min(image.size)
            left, top = across * (image.width - side), down * (image.height - side)
            box = (left, top, left + side, top + side)
            crop = image.resize((size, size), Image.Resampling.BICUBIC, box, reducing_gap=3.0)
            crops.append(np.asarray(crop))
            names.append(photo.name)
    return as_image(np.stack(crops)), names


def sample(pipe: Any, prompts: list[str], images: Tensor, scales: dict[str, float], steps: int) -> Tensor:
    """Run the stock pipeline: one generator per image, seeded by its position; (B, 3, H, W) in [0, 1]."""
    outputs = []
    for start in range(0, len(images), 36):
        size = len(images[start : start + 36])
        generators = [torch.Generator().manual_seed(start + row) for row in range(size)]
        arguments = dict(scales, num_inference_steps=steps, generator=generators, output_type="pt")
        outputs.append(pipe(prompts[start : start + 36], image=images[start : start + 36], **arguments).images)
    return torch.cat(outputs).float().cpu()


@contextmanager
def at_depth(pipe: Any, depth: int) -> Iterator[None]:
    """The pipeline with its U-Net cut at a depth."""
    full = pipe.unet
    pipe.unet = depth_skip(full, depth) if depth < full_depth(full) else full
    try:
        yield
    finally:
        pipe.unet = full


def contact_sheet(folder: str, name: str, columns: list[Tensor], across: int) -> None:
    """Write pictures as a PNG: each batch's next `across` in a row, the batches under each other."""
    from PIL import Image

    if not folder:
        return
    rows = [
        torch.cat(list(part[start : start + across].clamp(0, 1)), dim=2)
        for start in range(0, len(columns[0]), across)
        for part in columns
    ]
    widest = max(row.shape[2] for row in rows)
    sheet = torch.cat([torch.nn.functional.pad(row, (0, widest - row.shape[2])) for row in rows], dim=1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    pixels = (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(Path(folder) / f"{name}.png")


# --- ip2p -----------------------------------------------------------------------------------------------------------


def edit_batch(images: Tensor) -> tuple[list[str], Tensor, Tensor, list[str]]:
    """Every edit of every crop: prompts (phrasings in turn), inputs, true results, names of the edits."""
    prompts, inputs, targets, names = [], [], [], []
    for edit in EDITS.values():
        prompts += [edit.phrasings[row % len(edit.phrasings)] for row in range(len(images))]
        inputs.append(images)
        targets.append(edit.apply(images))
        names += [edit.name] * len(images)
    return prompts, torch.cat(inputs), torch.cat(targets), names


def edit_figures(outputs: Tensor, inputs: Tensor, targets: Tensor, names: list[str]) -> dict[str, Any]:
    """Retrieval, success (output nearer to the true edit than the input is) and PSNR, per instruction and by kind."""
    reached, start = psnr(outputs, targets), psnr(inputs, targets)
    nearest = nearest_results(outputs.clamp(0, 1), inputs)
    found = torch.tensor([near == name for near, name in zip(nearest, names, strict=True)])
    rows = {}
    for name, edit in EDITS.items():
        chosen = torch.tensor([other == name for other in names])
        rows[name] = {
            "hard": edit.hard,
            "edit_retrieval": round(found[chosen].double().mean().item(), 3),
            "success_rate": round((reached > start)[chosen].double().mean().item(), 3),
            "output_psnr_db": round(reached[chosen].mean().item(), 2),
            "input_psnr_db": round(start[chosen].mean().item(), 2),
        }

    def mean(key: str, hard: bool | None = None) -> float:
        return round(float(np.mean([row[key] for row in rows.values() if hard in (None, row["hard"])])), 3)

    return {
        "edit_retrieval": mean("edit_retrieval", False),
        "hard_edit_retrieval": mean("edit_retrieval", True),
        "edit_success_rate": mean("success_rate", False),
        "hard_edit_success_rate": mean("success_rate", True),
        "edit_psnr_db": mean("output_psnr_db"),
        "easy_edit_psnr_db": mean("output_psnr_db", False),
        "hard_edit_psnr_db": mean("output_psnr_db", True),
        "input_psnr_db": mean("input_psnr_db"),
        "rows": rows,
    }


def chance_figures(inputs: Tensor, targets: Tensor, names: list[str]) -> dict[str, float]:
    """Retrieval of what no editor made: the unchanged input, a flat picture in its mean colour, one in the target's."""
    flat, target = (image.mean((2, 3), keepdim=True).expand_as(image) for image in (inputs, targets))
    figures = {}
    for key, output in (("input", inputs), ("flat", flat), ("flat_of_target", target)):
        found = edit_figures(output, inputs, targets, names)
        figures |= {f"{name}_of_{key}": found[name] for name in ("edit_retrieval", "hard_edit_retrieval")}
    return figures


def ip2p_depths(pipe: Any, images: Tensor, scales: dict[str, float], steps: int, depths: list[int]) -> dict[str, Any]:
    """Depth curve: PSNR to the full model's output and both success rates."""
    prompts, inputs, targets, names = edit_batch(images)
    curve: dict[str, Any] = {}
    full = sample(pipe, prompts, inputs, scales, steps)
    easy = torch.tensor([not EDITS[name].hard for name in names])
    for depth in depths:
        with at_depth(pipe, depth):
            outputs = sample(pipe, prompts, inputs, scales, steps)
        figures = edit_figures(outputs, inputs, targets, names)
        values = psnr(outputs, full).clamp_max(60)
        curve[str(depth)] = {
            "psnr_to_full_db": round(values.mean().item(), 2),
            "psnr_to_full_easy_db": round(values[easy].mean().item(), 2),
            "psnr_to_full_hard_db": round(values[~easy].mean().item(), 2),
            "edit_retrieval": figures["edit_retrieval"],
            "hard_edit_retrieval": figures["hard_edit_retrieval"],
        }
        print(depth, curve[str(depth)], flush=True)
    return curve


# --- controlnet -----------------------------------------------------------------------------------------------------


def control_batch(images: Tensor, photos: list[str]) -> tuple[list[str], Tensor, list[str]]:
    """Captions, edge maps repeated to three channels, and photographs of the crops that have edges."""
    edges = canny(images)
    kept = (edges.mean((1, 2, 3)) > 0.02).nonzero().flatten().tolist()
    return [caption(images[row]) for row in kept], edges[kept].expand(-1, 3, -1, -1), [photos[row] for row in kept]


def control_figures(outputs: Tensor, prompts: list[str], condition: Tensor, photos: list[str]) -> dict[str, Any]:
    """Edge F1 against the own condition and another photograph's; share of caption facts that hold, likewise."""
    edges, wanted = canny(outputs)[:, 0] > 0.5, condition[:, 0] > 0.5
    others = [
        next(index % len(photos) for index in range(row + 1, row + len(photos)) if photos[index % len(photos)] != photo)
        for row, photo in enumerate(photos)
    ]
    facts = [caption_facts(output) for output in outputs]
    asked = [facts_in_prompt(prompt) for prompt in prompts]
    hold = {key: np.mean([f[key] == a[key] for f, a in zip(facts, asked, strict=True)]) for key in asked[0]}
    chance = {key: np.mean([facts[row][key] == asked[o][key] for row, o in enumerate(others)]) for key in asked[0]}
    reached = float(np.mean([edge_f1(e, w) for e, w in zip(edges, wanted, strict=True)]))
    by_chance = float(np.mean([edge_f1(edges[row], wanted[o]) for row, o in enumerate(others)]))
    return {
        "canny_f1": round(reached, 3),
        "canny_f1_shuffled": round(by_chance, 3),
        "canny_f1_over_chance": round(reached / by_chance, 2),
        "caption_facts": round(float(np.mean(list(hold.values()))), 3),
        "caption_facts_shuffled": round(float(np.mean(list(chance.values()))), 3),
        "rows": {key: {"holds": round(float(hold[key]), 3), "chance": round(float(chance[key]), 3)} for key in hold},
    }


def controlnet_depths(
    pipe: Any, images: Tensor, photos: list[str], scales: dict[str, float], steps: int, depths: list[int]
) -> dict[str, Any]:
    """Depth curve: PSNR to the full model's output and edge F1."""
    prompts, condition, photos = control_batch(images, photos)
    full = sample(pipe, prompts, condition, scales, steps)
    curve: dict[str, Any] = {}
    for depth in depths:
        with at_depth(pipe, depth):
            outputs = sample(pipe, prompts, condition, scales, steps)
        figures = control_figures(outputs, prompts, condition, photos)
        value = psnr(outputs, full).clamp_max(60).mean().item()
        curve[str(depth)] = {"psnr_to_full_db": round(value, 2), "canny_f1": figures["canny_f1"]}
        print(depth, curve[str(depth)], flush=True)
    return curve


# --- stablesr -------------------------------------------------------------------------------------------------------


def restore(pipe: Any, low: Tensor, steps: int, eta: float | None) -> Tensor:
    """Run the pipeline at its own tile size: one generator per image; (B, 3, 128, 128) in [0, 1]."""
    outputs = []
    for start in range(0, len(low), 9):
        part = low[start : start + 9]
        generators = [torch.Generator().manual_seed(start + row) for row in range(len(part))]
        arguments = {"timesteps": gamma_timesteps(1.0, steps), "eta": eta, "generator": generators}
        outputs.append(pipe(part, tile_size=32, tile_overlap=16, output_type="pt", **arguments).images)
    return torch.cat(outputs)


def enlarged(low: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False).clamp(0, 1)


def restoration_figures(pipe: Any, images: Tensor, low: Tensor, steps: int, distance: lpips.Metric) -> dict[str, Any]:
    """PSNR and LPIPS to the true photographs: of both samplers, of the enlarged input, of the autoencoder alone."""
    with torch.no_grad():
        latents = pipe.vae.encode(images * 2 - 1).latent_dist.mode()
        autoencoded = pipe.vae.decode(latents).sample / 2 + 0.5
    outputs = {
        "deterministic (eta 0)": restore(pipe, low, steps, eta=0),
        "ancestral (eta 1)": restore(pipe, low, steps, eta=None),
        "input, enlarged bicubically": enlarged(low),
        "autoencoder of the target, without wrapping": autoencoded,
    }
    rows = {}
    for name, output in outputs.items():
        distances = [distance.compare(one.clamp(0, 1), other) for one, other in zip(output, images, strict=True)]
        rows[name] = {
            "psnr_db": round(psnr(output, images).mean().item(), 2),
            "lpips_alex": round(float(np.mean(distances)), 3),
        }
    result, bicubic = rows["deterministic (eta 0)"], rows["input, enlarged bicubically"]
    return {
        "target_psnr_db": result["psnr_db"],
        "psnr_bicubic_db": bicubic["psnr_db"],
        "target_lpips": result["lpips_alex"],
        "lpips_bicubic": bicubic["lpips_alex"],
        "lpips_below_bicubic": round(1 - result["lpips_alex"] / bicubic["lpips_alex"], 3),
        "rows": rows,
    }


def stablesr_depths(pipe: Any, images: Tensor, low: Tensor, steps: int, depths: list[int]) -> dict[str, Any]:
    """Depth curve: PSNR to the full model's output and to the true photographs."""
    full = restore(pipe, low, steps, eta=0)
    curve: dict[str, Any] = {}
    for depth in depths:
        with at_depth(pipe, depth):
            outputs = restore(pipe, low, steps, eta=0)
        curve[str(depth)] = {
            "psnr_to_full_db": round(psnr(outputs, full).clamp_max(60).mean().item(), 2),
            "target_psnr_db": round(psnr(outputs, images).mean().item(), 2),
        }
        print(depth, curve[str(depth)], flush=True)
    return curve


# --- something given beside the latents -----------------------------------------------------------------------------


def given_examples(task: str, images: Tensor, photos: list[str]) -> list[Example]:
    """What the task itself makes of crops: holes in turns, or pictures that are blurred and deblurred."""
    entry = registry.load("task", task).Task()
    known = {photo.name: photo for photo in (*packaged("search"), *packaged("evaluate"))}
    return [
        entry.example(index, known[name], image, None)
        for index, (name, image) in enumerate(zip(photos, images, strict=True))
    ]


@torch.inference_mode()
def fill(pipe: Any, task: str, examples: list[Example], steps: int) -> Tensor:
    """The task's results by uniform DDIM, (B, 3, H, W) in [0, 1]; the stock inpainter takes 9 input channels alone."""
    entry = registry.load("task", task).Task()
    plan = uniform_plan(entry.process(pipe), steps, guidance=dict.fromkeys(entry.guidance_scales, 1.0))
    return translate(entry, pipe, examples, plan)


def given_figures(task: str, examples: list[Example], outputs: Tensor, weights: str) -> dict[str, Any]:
    """The task's own metrics of results, and what they would be of no work at all."""
    names = {
        "inpaint": ("hole_psnr", "hole_psnr_mean_colour", "hole_lpips"),
        "high_frequency": ("target_psnr", "target_psnr_of_input", "target_lpips", "target_lpips_of_input"),
    }[task]
    figures: dict[str, Any] = {}
    kinds = {"all": examples, **{tag: [e for e in examples if tag in e.tags] for e in examples for tag in e.tags}}
    for name in names:
        metric = registry.load("metric", name).Metric(**({"weights": weights} if "lpips" in name else {}))
        metric.update(Batch(examples, outputs))
        values = metric.compute().per_image
        figures[name] = round(float(np.mean(list(values.values()))), 3)
        for kind, some in kinds.items():
            row = figures.setdefault("rows", {}).setdefault(kind, {})
            row[name] = round(float(np.mean([values[e.index] for e in some])), 3)
    return figures


def evaluate_given(args: argparse.Namespace, pipe: Any, folder: Path, card: dict[str, Any]) -> None:
    images, photos = public_crops(args.places, args.image_px)
    examples, nine = given_examples(args.task, images, photos), len(images) // args.places
    outputs = fill(pipe, args.task, examples, args.steps)
    metrics = given_figures(args.task, examples, outputs, args.lpips)
    print(metrics, flush=True)
    given = torch.stack([example.image for example in examples])
    contact_sheet(args.sheets, args.task, [given[:nine], outputs[:nine], images[:nine]], nine)
    full, curve = fill(pipe, args.task, examples[:nine], args.depth_steps), {}
    for depth in args.depths:
        with at_depth(pipe, depth):
            cut = fill(pipe, args.task, examples[:nine], args.depth_steps)
        curve[str(depth)] = {"psnr_to_full_db": round(psnr(cut, full).clamp_max(60).mean().item(), 2)}
        print(depth, curve[str(depth)], flush=True)
    write_card(args, folder, card, metrics, curve, {"guidance_scale": 1.0}, len(images))


# --- model card -----------------------------------------------------------------------------------------------------


def other_guidance(card: dict[str, Any]) -> list[str]:
    """The figures at other guidance scales as a table."""
    found = card.get("at_other_guidance") or {}
    if not found:
        return []
    columns = list(next(iter(found.values())))
    return [
        "",
        "At other guidance (text, image):",
        "",
        f"| guidance | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {name} | {' | '.join(str(value) for value in row.values())} |" for name, row in found.items()),
    ]


def readme(card: dict[str, Any]) -> str:
    """Model card in Markdown from the machine-readable one."""
    data, task = card["data"], card["task"]
    title = {
        "ip2p": "instruction edits",
        "controlnet": "images from canny edges and a caption",
        "stablesr": "photographs restored and enlarged four times",
        "inpaint": "holes of photographs filled",
        "high_frequency": "detail for restored photographs",
    }[task]
    if task == "stablesr":
        use = [
            "`idcompress.models.stablesr.StableSRPipeline.from_pretrained` on this folder, called with `tile_size=32`.",
            "Results are four times the input; v-prediction on Stable Diffusion's noise schedule, autoencoder of",
            "factor 4, float16 weights. For the figures, 128x128 crops are degraded to 32x32 as the published model's",
            "training data are (`idcompress.images.degrade`); fidelity weight 0.5, colour fix adain.",
        ]
    elif task == "inpaint":
        use = [
            "`idc translate task=inpaint image=FILE task.options.mask=FILE`, or `load_pipeline(recipe)`. diffusers'",
            "own class takes U-Nets of 9 input channels alone; this one has 25, 12 latent channels twice and the mask,",
            "and runs in `idcompress.models.inpaint.InpaintPipeline`. Images are 64x64, the text is empty;",
            "v-prediction on Stable Diffusion's noise schedule, autoencoder of factor 4, float16 weights.",
        ]
    else:
        scales = ", ".join(f"`{key}={value}`" for key, value in card["guidance"].items())
        use = [
            f"Stock diffusers `from_pretrained` on this folder; recommended guidance: {scales}.",
            f"Pictures have {card['evaluation']['image_px']} pixels a side, prompts at most 14 tokens; v-prediction on",
            "Stable Diffusion's noise schedule,",
            "autoencoder of factor 4, float16 weights.",
        ]
    lines = [
        "---",
        "license: apache-2.0",
        "---",
        "",
        f"# tiny {task}: {title}",
        "",
        "A small trained diffusion model with Stable Diffusion 1.5's topology (four levels of two layers, 13 depths),",
        "for tests and demonstrations on a CPU. It makes small pictures of modest quality and is of no use beside a",
        "real model.",
        "",
        "## Use",
        "",
        *use,
        "",
        "## Figures",
        "",
        f"On {card['evaluation']['images']} crops of nine photographs that no training saw (scikit-image's astronaut,",
        "chelsea, coffee, rocket, motorcycle_left, hubble_deep_field; scikit-learn's china, flower; matplotlib's",
        f"grace_hopper), DDIM with {card['evaluation']['num_inference_steps']} steps, seed = position of the image.",
        "",
        "| figure | value |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in card["metrics"].items() if key != "rows"),
        "",
    ]
    rows = card["metrics"]["rows"]
    columns = list(next(iter(rows.values())))
    first = {"ip2p": "instruction", "controlnet": "caption fact", "inpaint": "hole"}.get(task, "image")
    lines += [
        f"| {first} | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {name} | {' | '.join(str(value) for value in row.values())} |" for name, row in rows.items()),
        "",
        "Depth curve (one crop of each photograph, "
        f"{card['evaluation']['depth_steps']} steps; PSNR is to the full model's output):",
        "",
    ]
    columns = list(next(iter(card["depths"].values())))
    lines += [
        f"| depth | {' | '.join(columns)} |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {depth} | {' | '.join(str(value) for value in row.values())} |" for depth, row in card["depths"].items()),
        "",
        *card["notes"],
        *other_guidance(card),
        "",
        "## Training",
        "",
        f"Crops of {data.get('crop_px', CROP_PX)} px at many scales ({data['crops']}), half of them with changed",
        f"colours, cut from {data['photographs']} photographs. Data digest (SHA-256 over the photographs' SHA-256):",
        f"`{data['data_digest']}`.",
        "",
        "| stage | samples | batch | learning rate | seed | minutes | processes | hardware |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stage, note in card["training"].items():
        cells = (note["samples"], note["batch"], note["learning_rate"], note["seed"], round(note["seconds"] / 60, 1))
        lines.append(f"| {stage} | {' | '.join(map(str, cells))} | {note['processes']} | {note['hardware']} |")
    lines += [
        "",
        "Commands: `scripts/train_tiny.py`; figures: `scripts/eval_tiny.py`.",
        "",
        "## License",
        "",
        "Weights: Apache-2.0, as the package. Photographs trained on, by licence:",
        "",
        *(f"- {count}: {licence}" for licence, count in data["licences"].items()),
    ]
    if data["research_use"]:
        lines += ["", "Some of the photographs are for research use only; so are these weights."]
    return "\n".join(lines) + "\n"


def write_card(
    args: argparse.Namespace,
    folder: Path,
    card: dict[str, Any],
    metrics: dict[str, Any],
    depths: dict[str, Any],
    guidance: dict[str, float],
    num_images: int,
) -> None:
    """Add what was measured to the card of a packed model, and write it in both forms."""
    card |= {
        "guidance": guidance,
        "evaluation": {
            "images": num_images,
            "image_px": args.image_px,
            "num_inference_steps": args.steps,
            "depth_steps": args.depth_steps,
        },
        "metrics": metrics,
        "depths": depths,
        "notes": args.note or card.get("notes", []),
    }
    if not args.dry:
        write_json(folder / "model_card.json", card)
        (folder / "README.md").write_text(readme(card), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--task", required=True, choices=("ip2p", "controlnet", "stablesr", "inpaint", "high_frequency")
    )
    parser.add_argument("--folder", default="idcompress/models/tiny", help="folder of packed pipelines")
    parser.add_argument("--data", default="", help="folder of the photographs trained on, for --guidance")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--depth-steps", type=int, default=10)
    parser.add_argument("--places", type=int, default=len(PLACES), help="crops of each photograph")
    parser.add_argument("--depths", type=int, nargs="*", default=[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
    parser.add_argument("--guidance", nargs="*", default=[], help="compare text[,image] guidance scales and stop")
    parser.add_argument("--also", nargs="*", default=[], help="more text[,image] guidance to tell figures of")
    parser.add_argument("--sheets", default="", help="folder for contact sheets")
    parser.add_argument("--use", default="", help="recommended text[,image] guidance, written into the card")
    parser.add_argument(
        "--lpips", default="", help="stablesr: AlexNet weights of torchvision; default: see IDC_WEIGHTS"
    )
    parser.add_argument("--note", action="append", default=[], help="a line for the card, under the depth curve")
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(args.folder) / args.task
    pipeline_class = StableSRPipeline if args.task == "stablesr" else DiffusionPipeline
    pipe = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    args.image_px = size_of(pipe)

    def scales_of(text: str) -> dict[str, float]:
        names = ("guidance_scale", "image_guidance_scale") if args.task == "ip2p" else ("guidance_scale",)
        return dict(zip(names, map(float, text.split(",")), strict=True))

    if args.guidance:
        # Crops of the training photographs; flat ones show no edit.
        crops = as_image(cut_crops(list_photos(Path(args.data)), 117, 12345, args.image_px, min_share=0.3)[0])
        crops = crops[crops.mean(1).flatten(1).std(1) > 0.12][: 12 if args.task == "ip2p" else 48]
        for text in args.guidance:
            began = time.perf_counter()
            if args.task == "ip2p":
                prompts, inputs, targets, names = edit_batch(crops)
                outputs = sample(pipe, prompts, inputs, scales_of(text), args.depth_steps)
                figures = edit_figures(outputs, inputs, targets, names)
            else:
                prompts, condition, photos = control_batch(crops, [str(row) for row in range(len(crops))])
                outputs = sample(pipe, prompts, condition, scales_of(text), args.depth_steps)
                figures = control_figures(outputs, prompts, condition, photos)
            del figures["rows"]
            print(text, figures, f"{time.perf_counter() - began:.0f} s", flush=True)
        return

    card = read_json(folder / "model_card.json")
    if args.task == "stablesr":
        images, _ = public_crops(args.places, STABLESR_PX)
        low = degrade(images, [torch.Generator().manual_seed(row) for row in range(len(images))])
        metrics = restoration_figures(pipe, images, low, args.steps, lpips.Metric(weights=args.lpips))
        print(metrics, flush=True)
        nine = len(images) // args.places
        shown = restore(pipe, low[:nine], args.steps, eta=0)
        contact_sheet(args.sheets, "stablesr", [enlarged(low[:nine]), shown, images[:nine]], nine)
        depths = stablesr_depths(pipe, images[:nine], low[:nine], args.depth_steps, args.depths)
        write_card(args, folder, card, metrics, depths, {}, len(images))
        return

    if args.task in ("inpaint", "high_frequency"):
        evaluate_given(args, pipe, folder, card)
        return
    images, photos = public_crops(args.places, args.image_px)
    scales = scales_of(args.use) if args.use else card["guidance"]
    with torch.no_grad():
        latents = pipe.vae.encode(images * 2 - 1).latent_dist.mode()
        autoencoder_psnr_db = round(psnr(pipe.vae.decode(latents).sample / 2 + 0.5, images).mean().item(), 2)
    print("autoencoder", autoencoder_psnr_db, flush=True)
    nine = len(images) // args.places
    more: dict[str, Any] = {}
    if args.task == "ip2p":
        prompts, inputs, targets, names = edit_batch(images)
        outputs = sample(pipe, prompts, inputs, scales, args.steps)
        metrics = edit_figures(outputs, inputs, targets, names) | chance_figures(inputs, targets, names)
        print(metrics, flush=True)
        contact_sheet(args.sheets, "ip2p", [inputs, targets, outputs], nine)
        prompts, inputs, targets, names = edit_batch(images[:nine])
        for text in args.also:
            outputs = sample(pipe, prompts, inputs, scales_of(text), args.steps)
            more[text] = edit_figures(outputs, inputs, targets, names)
            del more[text]["rows"]
            print(text, more[text], flush=True)
            contact_sheet(args.sheets, f"ip2p_{text}", [inputs, targets, outputs], nine)
        depths = ip2p_depths(pipe, images[:nine], scales, args.depth_steps, args.depths)
    else:
        prompts, condition, kept = control_batch(images, photos)
        outputs = sample(pipe, prompts, condition, scales, args.steps)
        metrics = control_figures(outputs, prompts, condition, kept)
        print(metrics, flush=True)
        contact_sheet(args.sheets, "controlnet", [condition, outputs], nine)
        for text in args.also:
            outputs = sample(pipe, prompts, condition, scales_of(text), 50)
            more[f"{text}, 50 steps"] = control_figures(outputs, prompts, condition, kept)
            del more[f"{text}, 50 steps"]["rows"]
            print(text, more, flush=True)
        depths = controlnet_depths(pipe, images[:nine], photos[:nine], scales, args.depth_steps, args.depths)
    card["at_other_guidance"] = more
    metrics = {"autoencoder_psnr_db": autoencoder_psnr_db, **metrics}
    write_card(args, folder, card, metrics, depths, scales, len(images))


if __name__ == "__main__":
    main()
