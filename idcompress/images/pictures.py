"""Image files in, tensors through, PNG files out: any mode becomes 8-bit RGB, and a bad file is one clear line."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import IdcError
from ..runs.files import write_bytes

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright by its EXIF orientation.

    Transparency is laid on white. Deep modes are scaled, never clipped: 16-bit grey by 1/257, floating point from
    [0, 1] (or from [0, 255] if a value is above 1). Of several frames the first counts.

    Raises:
        IdcError: the file is missing, empty, a folder, no image, damaged, or of a range that cannot be told.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IdcError(f"{path} is a folder; want an image file")
    if not path.exists():
        raise IdcError(f"there is no image file {path}")
    if path.stat().st_size == 0:
        raise IdcError(f"{path} is empty (0 bytes); want an image file")
    return decode_image(path, str(path))


def decode_image(source: Path | io.BytesIO, place: str) -> Image.Image:
    """As `load_image`, from a file or from bytes; `place` is what errors call it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), place)
    except UnidentifiedImageError:
        raise IdcError(f"{place} is no image that can be read, whatever its name ends in; want {_kinds()}") from None
    except PermissionError:
        raise IdcError(f"{place} may not be read (permission denied)") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow raises any of these for files that are cut short or damaged.
        raise IdcError(f"{place} is a damaged image ({error}); copy or fetch it again") from None


def _kinds() -> str:
    return ", ".join(suffix[1:].upper() for suffix in SUFFIXES if suffix not in (".jpeg", ".tif"))


def _to_rgb(image: Image.Image, place: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_to_8_bit(np.asarray(image, dtype=np.float64), image.mode, place)).convert("RGB")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bit(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], mode: str, place: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if not np.isfinite(values).all():
        raise IdcError(f"{place} holds NaN or infinite values; want an image of finite ones")
    low, high = float(values.min()), float(values.max())
    full = 65535.0 if mode.startswith("I") else 1.0 if high <= 1 else 255.0
    if low < 0 or high > full:
        wanted = "0 .. 65535" if mode.startswith("I") else "0 .. 1 or 0 .. 255"
        raise IdcError(f"{place} holds values from {low:g} to {high:g} (mode {mode}); want {wanted}, or an 8-bit image")
    return np.round(values * (255 / full)).astype(np.uint8)


def list_images(folder: str | Path) -> list[Path]:
    """Image files in a folder and its subfolders by their suffix, sorted; hidden ones are left out.

    Raises:
        IdcError: it is no folder, or holds none; then what it holds is told.
    """
    folder = Path(folder).expanduser()
    return sorted(folder / name for name in list_files(folder) if is_image(name))


def list_files(folder: Path) -> list[str]:
    """Files in a folder of images and its subfolders, relative to it; hidden ones are left out.

    Raises:
        IdcError: it is no folder, or holds no image; then what it holds is told.
    """
    if not folder.exists():
        raise IdcError(f"there is no folder {folder}; want one with images ({_kinds()})")
    if not folder.is_dir():
        raise IdcError(f"{folder} is a file; want a folder with images ({_kinds()})")
    files = list(_walk(str(folder), ""))
    if not any(map(is_image, files)):
        suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in files).most_common(3)
        found = ", ".join(f"{number} x {suffix}" for suffix, number in suffixes) or "no file at all"
        raise IdcError(f"{folder} holds no image ({_kinds()}); found {found}")
    return files


def _walk(folder: str, prefix: str) -> Iterator[str]:
    # Faster than Path.rglob by far: folders of 100,000 files are common.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name


def is_image(name: str) -> bool:
    """Whether a file name has an image's suffix."""
    return name.lower().endswith(SUFFIXES)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W), float32 in [0, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255


def to_pil(image: Tensor) -> Image.Image:
    """A tensor (3, H, W) in [0, 1] as an 8-bit RGB image, clamped and rounded to the nearest value."""
    values = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def save_png(image: Tensor, path: str | Path) -> Path:
    """Write a tensor (3, H, W) in [0, 1] as a PNG that appears whole or not at all.

    Raises:
        IdcError: the folder cannot be written to.
    """
    path = Path(path)
    data = io.BytesIO()
    to_pil(image).save(data, format="PNG")
    try:
        return write_bytes(path, data.getvalue())
    except OSError as error:
        raise IdcError(f"cannot write {path} ({error.strerror}); choose another folder") from None


def crop_square(image: Image.Image, size: int, number: int = 0) -> Tensor:
    """A square of an image at `size` px, resized with an antialiasing (Lanczos) filter.

    Args:
        image: RGB, of any size; one that is too small is enlarged.
        size: side of the result in px.
        number: 0: the largest square, centred. Further numbers: squares of 0.5 to 0.9 of that side, but not smaller
            than `size` where there is a choice, at places that depend on the number alone.

    Returns:
        (3, size, size), float32 in [0, 1].
    """
    width, height = image.size
    shorter = min(width, height)
    side, across, down = shorter, 0.5, 0.5
    if number > 0:
        place = random.Random(number)
        side = min(shorter, max(size, 1, round(shorter * (0.5 + 0.4 * place.random()))))
        across, down = place.random(), place.random()
    left, top = round((width - side) * across), round((height - side) * down)
    box = (left, top, left + side, top + side)
    return to_tensor(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def random_crop(
    images: Sequence[Image.Image],
    size: int,
    rng: np.random.Generator,
    *,
    scales: tuple[float, float] = (0.5, 1.0),
    flip: bool = True,
) -> list[Tensor]:
    """A square at a random place and scale, mirrored every other time: for training. All images are cut alike.

    Args:
        images: views of one scene, say before and after an edit; their resolutions may differ.
        size: side of the results in px.
        rng: four numbers are drawn, whatever the settings.
        scales: range of the square's side as a share of the first image's shorter side; it is not smaller than `size`
            px where there is a choice. (1, 1) resizes the whole of a square image, (0, 0) cuts without resizing.
        flip: false where left and right matter, as in some instructions.

    Returns:
        Each (3, size, size), float32 in [0, 1].
    """
    scale, across, down, mirror = rng.random(4)
    width, height = images[0].size
    shorter = min(width, height)
    side = min(shorter, max(size, round(shorter * (scales[0] + (scales[1] - scales[0]) * scale))))
    left, top = round((width - side) * across), round((height - side) * down)
    crops = []
    for image in images:
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, min((left + side) * x, image.width), min((top + side) * y, image.height))
        crop = to_tensor(image.resize((size, size), Image.Resampling.LANCZOS, box=box))
        crops.append(crop.flip(-1) if flip and mirror < 0.5 else crop)
    return crops


def fit_to_multiple(image: Image.Image, multiple: int, longest_px: int | None = None) -> Image.Image:
    """Resize an image so that both sides are multiples of `multiple`, as a U-Net wants them.

    The aspect ratio is kept: what rounding leaves over is cut off evenly, less than one multiple in all.

    Args:
        image: RGB, of any size.
        multiple: for example 8 times the number of latents' halvings.
        longest_px: the longer side of the result, rounded to a multiple; None: the image's own.
    """
    scale = 1.0 if longest_px is None else longest_px / max(image.size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in image.size)
    if (width, height) == image.size:
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
