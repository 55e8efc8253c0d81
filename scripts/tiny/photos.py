"""Photographs as training wants them: licences, crops, edits, captions."""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from torch import Tensor

from idcompress.images import captions
from idcompress.images.edits import EDITS, luma
from idcompress.models.tiny.build import IMAGE_PX

CROP_PX = IMAGE_PX
MAX_SHORT_PX = 384  # a crop shows at least a third of a photograph's shorter side: nearer ones have little detail
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}
# Photo sets of a manifest.csv whose licence forbids redistribution of derived weights without a warning.
RESEARCH_ONLY_MARK = "research"
_HUE_EDGES = (15.0, 45.0, 70.0, 160.0, 200.0, 255.0, 290.0, 345.0)
_FACTS = (captions.BRIGHTNESS, captions.WARMTH, captions.COLOURS, captions.CONTRAST, captions.SHARPNESS)


@dataclass(frozen=True)
class Photo:
    """One training photograph and what is known about its licence ('' when no manifest names it)."""

    path: Path
    licence: str


def list_photos(folder: Path, research: bool = False) -> list[Photo]:
    """List the photographs of a folder, sorted by name.

    Args:
        folder: any folder of photographs; where it has a manifest.csv with columns `file` and `licence`, licences
            are read from it.
        research: also take photographs whose licence text speaks of research use only.

    Raises:
        FileNotFoundError: no photograph is left.
    """
    manifest = folder / "manifest.csv"
    licences: dict[str, str] = {}
    if manifest.exists():
        with manifest.open(newline="", encoding="utf-8") as handle:
            licences = {row["file"]: row["licence"] for row in csv.DictReader(handle)}
    photos = [
        Photo(path, licences.get(path.name, ""))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _SUFFIXES and (research or RESEARCH_ONLY_MARK not in licences.get(path.name, ""))
    ]
    if not photos:
        raise FileNotFoundError(f"no photographs in {folder}; give a folder with jpg or png files (--data)")
    return photos


def data_note(photos: list[Photo], research: bool = False) -> dict[str, Any]:
    """What a model card says about the photographs."""
    licences: dict[str, int] = {}
    for photo in photos:
        licences[photo.licence] = licences.get(photo.licence, 0) + 1
    return {
        "photographs": len(photos),
        "licences": licences,
        "crops": "new ones at every step",
        "crop_px": CROP_PX,
        "data_digest": data_digest(photos),
        "research_use": research,
    }


def data_digest(photos: Iterable[Photo]) -> str:
    """SHA-256 over the SHA-256 of every photograph, in order; names do not matter."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(hashlib.sha256(photo.path.read_bytes()).digest())
    return digest.hexdigest()


def _jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour augmentation of (H, W, 3) in [0, 1]: saturation, channel gains, gamma, now and then swapped channels."""
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pixels = grey[..., None] + rng.uniform(0.3, 1.6) * (pixels - grey[..., None])
    pixels = pixels * np.exp(rng.normal(0, 0.15, 3)).astype(np.float32)
    if rng.random() < 0.25:
        pixels = pixels[..., rng.permutation(3)]
    return np.clip(pixels, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.3)))


def cut_crops(
    photos: list[Photo], count: int, seed: int, size: int = CROP_PX, min_share: float = 0.12
) -> tuple[np.ndarray, np.ndarray]:
    """Cut square crops at many scales, half of them with changed colours, mirrored at random.

    Args:
        photos: where to cut.
        count: crops in all, spread evenly over the photographs.
        seed: of the crop positions and the augmentation.
        size: side of the crops in px.
        min_share: smallest side in the photograph as a share of its shorter side; never below `size` pixels.

    Returns:
        crops: (count, size, size, 3) uint8.
        photo_index: (count,) int32, the photograph of each crop.
    """
    rng = np.random.default_rng(seed)
    crops = np.empty((count, size, size, 3), dtype=np.uint8)
    photo_index = (np.arange(count, dtype=np.int64) * len(photos) // count).astype(np.int32)
    opened, image = -1, Image.new("RGB", (1, 1))
    for position, number in enumerate(photo_index):
        if number != opened:
            source = Image.open(photos[number].path)
            source.draft("RGB", (1600, 1600))
            image = source.convert("RGB")
            if photos[number].path.name.startswith("bsds"):  # BSDS photographs carry a thin dark frame
                image = image.crop((4, 4, image.width - 4, image.height - 4))
            opened = number
        short = min(image.size)
        side = math.exp(rng.uniform(math.log(min(short, max(size, min_share * short))), math.log(short)))
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        crop = image.resize(
            (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side), reducing_gap=3.0
        )
        pixels = np.asarray(crop, dtype=np.float32) / 255
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if rng.random() < 0.5:
            pixels = _jitter(pixels, rng)
        crops[position] = np.rint(pixels * 255).astype(np.uint8)
    order = rng.permutation(count)
    return crops[order], photo_index[order]


def as_image(crops: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).float() / 255


class Photos:
    """Photographs on a device at many sizes, from which batches of crops are cut without resampling.

    Every photograph is kept as 8-bit pixels with its shorter side at `size` times powers of 2^(1/3), so that a crop of
    `size` pixels is a plain window of one of them.
    """

    def __init__(self, photos: list[Photo], device: torch.device, size: int = CROP_PX) -> None:
        self.size, self.device = size, device
        with ThreadPoolExecutor() as pool:
            pictures = list(pool.map(lambda photo: np.asarray(Image.open(photo.path).convert("RGB")), photos))
        parts, table, offset = [], [], 0
        for picture in pictures:
            whole = torch.from_numpy(picture.copy()).to(device).permute(2, 0, 1)[None].float()
            short = min(whole.shape[-2:])
            side = float(size)
            while side <= min(short, MAX_SHORT_PX):
                shape = [round(length * side / short) for length in whole.shape[-2:]]
                small = functional.interpolate(whole, shape, mode="bicubic", align_corners=False, antialias=True)
                parts.append(small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).reshape(-1, 3))
                table.append((offset, *shape))
                offset += shape[0] * shape[1]
                side *= 2 ** (1 / 3)
        self.pixels = torch.cat(parts)
        self.table = torch.tensor(table, device=device)
        self.window = torch.arange(size, device=device)

    def crops(self, count: int, mixed: float = 0.0) -> Tensor:
        """Cut crops; half mirrored, a tenth upside down, half with changed colours.

        Args:
            count: crops.
            mixed: share that has a rectangle of another crop in it.

        Returns:
            (count, 3, size, size) in [0, 1].
        """
        start, height, width = self.table[torch.randint(len(self.table), (count,), device=self.device)].unbind(1)
        top = (self._uniform(count) * (height - self.size + 1)).long()
        left = (self._uniform(count) * (width - self.size + 1)).long()
        rows = self._mirrored(top, 0.1)[:, :, None] * width[:, None, None]
        image = self.pixels[start[:, None, None] + rows + self._mirrored(left, 0.5)[:, None]]
        image = _jitter_batch(image.permute(0, 3, 1, 2).float() / 255, self._uniform(count) < 0.5)
        if mixed:
            low, high = self._uniform(2, count, 1).sort(0).values.sub(0.25).mul(2 * self.size).unbind()
            left, right = self._uniform(2, count, 1).sort(0).values.sub(0.25).mul(2 * self.size).unbind()
            inside = ((self.window >= low) & (self.window < high))[:, :, None]
            inside = inside & ((self.window >= left) & (self.window < right))[:, None]
            inside = inside & (self._uniform(count) < mixed)[:, None, None]
            image = torch.where(inside[:, None], image.roll(1, 0), image)
        return image

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device)

    def _mirrored(self, first: Tensor, rate: float) -> Tensor:
        backwards = (self._uniform(len(first)) < rate)[:, None]
        return first[:, None] + torch.where(backwards, self.size - 1 - self.window, self.window)


def _jitter_batch(image: Tensor, which: Tensor) -> Tensor:
    """What `_jitter` does, on a batch (B, 3, H, W) and for the images that `which` (B,) names."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(image), *shape, 1, 1, device=image.device)

    grey = luma(image)
    changed = grey + (0.3 + 1.3 * torch.rand_like(grey[:, :, :1, :1])) * (image - grey)
    changed = changed * (0.15 * normal(3)).exp()
    order = torch.rand(len(image), 3, device=image.device).argsort(1)
    swapped = changed.gather(1, order[:, :, None, None].expand_as(changed))
    changed = torch.where(torch.rand_like(grey[:, :, :1, :1]) < 0.25, swapped, changed)
    changed = changed.clamp(0, 1) ** (0.3 * normal(1)).exp()
    return torch.where(which.view(-1, 1, 1, 1), changed, image)


def edited(images: Tensor, edits: np.ndarray) -> Tensor:
    """Every image after its edit: (B, 3, H, W) in [0, 1], and (B,) positions in EDITS."""
    names, result = list(EDITS), images.clone()
    for edit in np.unique(edits):
        rows = torch.from_numpy(np.flatnonzero(edits == edit)).to(images.device)
        result[rows] = EDITS[names[edit]].apply(images[rows])
    return result


def caption_texts() -> list[str]:
    """Every caption, in the order that `caption_rows` counts in."""
    return [
        f"a {brightness} {warmth} photo mostly {colour} with {contrast} contrast and {sharpness} detail"
        for brightness, warmth, colour, contrast, sharpness in itertools.product(*_FACTS)
    ]


def caption_rows(image: Tensor) -> Tensor:
    """Positions in `caption_texts` of the captions of images (B, 3, H, W) in [0, 1]: `caption`, on a device."""
    grey = luma(image)[:, 0]

    def third(value: Tensor, low: float, high: float) -> Tensor:
        return (value >= low).long() + (value >= high).long()

    largest, smallest = image.amax(1), image.amin(1)
    chroma = largest - smallest
    red, green, blue = image.unbind(1)
    safe = chroma.clamp_min(1e-6)
    warm = torch.where(largest == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    hue = 60 * torch.where(largest == red, ((green - blue) / safe) % 6, warm)
    edges = torch.tensor(_HUE_EDGES, dtype=hue.dtype, device=hue.device)
    bins = torch.bucketize(hue, edges) % len(_HUE_EDGES)  # the last bin is red again
    weights = torch.stack([(chroma * (bins == index)).sum((1, 2)) for index in range(len(_HUE_EDGES))], 1)
    colour = torch.where(chroma.mean((1, 2)) < 0.08, 0, 1 + weights.argmax(1))
    gradient = 0.5 * (grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2)))
    facts = (
        third(grey.mean((1, 2)), 0.33, 0.6),
        third((red - blue).mean((1, 2)), -0.03, 0.04),
        colour,
        third(grey.std((1, 2)), 0.09, 0.18),
        third(gradient, 0.012, 0.028),
    )
    row = torch.zeros_like(colour)
    for fact, words in zip(facts, _FACTS, strict=True):
        row = row * len(words) + fact
    return row


def vocabulary() -> list[str]:
    """Texts whose words are single tokens: every phrasing of every edit and the words of captions."""
    phrasings = [text for edit in EDITS.values() for text in edit.phrasings]
    facts = (captions.COLOURS, captions.BRIGHTNESS, captions.WARMTH, captions.CONTRAST, captions.SHARPNESS)
    return [*phrasings, *(" ".join(words) for words in facts), "a photo mostly with contrast and detail"]


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """PSNR in dB per image, (B,), of two batches in [0, 1]."""
    error = (output.clamp(0, 1) - target.clamp(0, 1)).square().flatten(1).mean(1).double()
    return -10 * error.clamp_min(1e-10).log10()
