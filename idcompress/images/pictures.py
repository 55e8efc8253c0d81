"""Image files in, tensors through, PNG files out: any mode becomes 8-bit RGB, and a bad file is one clear line."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..console import warn
from ..errors import IdcError
from ..runs.files import fitted, write_bytes
from . import metadata

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What Pillow may take a file for, whatever its name ends in: some of its other formats start external programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**29  # a small file can claim any size; this one fills 2 GB
WHOLE_PIXELS = 2**27  # a picture of more is halved: no task looks so closely
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: str | Path) -> Image.Image:
    """Read an image file as 8-bit RGB, upright by its EXIF orientation; whatever else EXIF or a profile say is passed.

    Transparency is laid on white. Of several frames the first counts. Pictures of more than 134 megapixels are halved
    while they are read, those of more than `MAX_PIXELS` are refused.

    Deep modes are scaled by their range, never stretched to it: 16-bit grey by 1/257. Values of 32 bits have no range
    of their own:

    - whole numbers up to 255 are 8-bit values, whole numbers from 4,096 up to 65,535 are 16-bit ones;
    - floating-point values up to 1 are of [0, 1]. So are higher ones where at least half of the positive values are up
      to 1: the others are highlights, which become white;
    - where half of the positive values are above 8, they are 8-bit values up to 255, 16-bit ones from 4,096 on;
    - fractions may lie a quarter of the range outside of it, as after a resize, and are clipped. All else is refused.

    Raises:
        IdcError: the file is missing, empty, a folder, no image, damaged, too large, or of a range that cannot be told.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise IdcError(f"{path} is a folder; want an image file")
        if not path.exists():
            raise IdcError(f"there is no image file {path}")
        if path.stat().st_size == 0:
            raise IdcError(f"{path} is empty (0 bytes); want an image file")
    except OSError as error:
        raise IdcError(f"{path} cannot be read ({error.strerror})") from None
    return decode_image(path, str(path))


def decode_image(source: Path | io.BytesIO, place: str) -> Image.Image:
    """As `load_image`, from a file or from bytes; `place` is what errors call it."""
    with _own_size_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that Pillow cannot read
        try:
            try:
                return _decode(source, place)
            except (IdcError, PermissionError, Image.DecompressionBombError):
                raise
            except Exception:  # Pillow raises what it likes for bad metadata; the picture itself may be whole
                data = source.read_bytes() if isinstance(source, Path) else source.getvalue()
                bare, turn = metadata.without(data)
                if bare == data:
                    raise
                return _decode(io.BytesIO(bare), place, turn)
        except IdcError:
            raise
        except UnidentifiedImageError:
            text = f"{place} is no image that can be read, whatever its name ends in; want {_kinds()}"
        except PermissionError:
            text = f"{place} may not be read (permission denied)"
        except Image.DecompressionBombError as error:
            text = f"{place} is too large ({str(error).partition(',')[0]}); scale it down first"
        except MemoryError:
            text = f"{place} does not fit into the memory; scale it down first"
        except Exception as error:  # of any kind: they differ by the format, and none may end a run of many pictures
            text = f"{place} is a damaged image ({_in_a_line(error)}); copy or fetch it again"
    raise IdcError(text)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _own_size_limit() -> Iterator[None]:
    """Our limit in place of Pillow's, which is lower; Pillow refuses twice the number that it is given."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _decode(source: Path | io.BytesIO, place: str, turn: int | None = None) -> Image.Image:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with Image.open(source, formats=FORMATS) as image:
        if image.width * image.height > WHOLE_PIXELS:
            image.draft(None, (image.width // 2, image.height // 2))  # JPEG halves while it decodes
        image.load()
        turned = _TURNS.get(_orientation(image) if turn is None else turn)
        halve = 2 if image.width * image.height > WHOLE_PIXELS else 1
        rgb = _to_rgb(image, place) if halve == 1 else _halved(image, place)
    return rgb if turned is None else rgb.transpose(turned)


def _orientation(image: Image.Image) -> int:
    """EXIF's number of how the picture is turned; 1, upright, where that cannot be read."""
    try:
        told = image.getexif().get(metadata.ORIENTATION)
    except Exception:  # as above
        told = None
    exif = image.info.get("exif")
    if told is None and isinstance(exif, bytes):  # Pillow stops at the first tag that it cannot read
        return metadata.orientation(exif)
    return metadata.number(told)


def _kinds() -> str:
    return ", ".join(suffix[1:].upper() for suffix in SUFFIXES if suffix not in (".jpeg", ".tif"))


def _halved(image: Image.Image, place: str) -> Image.Image:
    """Half the size in 8-bit RGB, made in strips, so that no whole copy is needed."""
    full = _full_value(image, place)
    made = Image.new("RGB", ((image.width + 1) // 2, (image.height + 1) // 2))
    for top in range(0, image.height, 512):
        strip = image.crop((0, top, image.width, min(top + 512, image.height)))
        made.paste(_to_rgb(strip, place, full).reduce(2), (0, top // 2))
    return made


def _to_rgb(image: Image.Image, place: str, full: float | None = None) -> Image.Image:
    full = _full_value(image, place) if full is None else full
    if full:
        values = np.asarray(image, dtype=np.float64) * (255 / full)
        return Image.fromarray(np.round(values.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return image.convert("RGB")


def _full_value(image: Image.Image, place: str) -> float:
    """The value that becomes 255, as `load_image` says; 0 where the mode is an 8-bit one."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return 0.0
    if image.mode.startswith("I;") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 65535.0  # the format's own range
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise IdcError(f"{place} holds NaN or infinite values; want an image of finite ones")
    full, beyond = _guess_full_value(values, high)
    if full is None or low < -beyond * full:
        wanted = "0 .. 255, 0 .. 65535" if image.mode == "I" else "0 .. 1, 0 .. 255, 0 .. 65535"
        raise IdcError(
            f"{place} holds values from {low:g} to {high:g} (mode {image.mode}), whose range cannot be told; want "
            f"{wanted}, or an 8-bit image"
        )
    return full


def _guess_full_value(values: np.ndarray[Any, Any], high: float) -> tuple[float | None, float]:
    """The upper end of the range, None where that is unclear, and how far fractions may lie outside, in its units."""
    sample = values.ravel()[:: max(1, values.size // 1_000_000)]
    whole = bool(high == round(high) and (sample == np.round(sample)).all())
    beyond = 0.0 if whole and high > 1 else 0.25
    positive = sample[sample > 0]
    middle = float(np.median(positive)) if positive.size else 0.0
    integer = np.issubdtype(values.dtype, np.integer)
    if not integer and (high <= 1 or (middle <= 1 and not (whole and high > 16))):
        return 1.0, 0.25
    if high <= 255 * (1 + beyond) and (integer or middle >= 8 or (whole and high > 16)):
        return 255.0, beyond
    if 4096 <= high <= 65535 * (1 + beyond):
        return 65535.0, beyond
    return None, beyond


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
    files = walk(folder)
    if not any(map(is_image, files)):
        suffixes = Counter(Path(name).suffix.lower() or "no suffix" for name in files).most_common(3)
        found = ", ".join(f"{number} x {suffix}" for suffix, number in suffixes) or "no file at all"
        raise IdcError(f"{folder} holds no image ({_kinds()}); found {found}")
    return files


def walk(folder: Path) -> list[str]:
    """Files in a folder and its subfolders, relative to it; hidden ones are left out.

    Links are followed. A folder counts once, by its own place before a link's: further links to it, and so loops, are
    left out with a line, and so are links that lead nowhere and folders that may not be read.
    """
    files: list[str] = []
    linked: list[tuple[str, str]] = []
    left_out: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()

    def enter(path: str, prefix: str) -> None:
        status = Path(path).stat()
        if (status.st_dev, status.st_ino) in seen:
            left_out.setdefault("linked folders that are listed already", []).append(prefix or path)
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            # Faster than Path.rglob by far: folders of 100,000 files are common.
            entries = list(os.scandir(path))
        except OSError:
            left_out.setdefault("folders that may not be read", []).append(prefix or path)
            return
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    enter(entry.path, f"{prefix}{entry.name}/")
                elif entry.is_dir():
                    linked.append((entry.path, f"{prefix}{entry.name}/"))
                elif entry.is_file():
                    files.append(prefix + entry.name)
                elif entry.is_symlink():
                    left_out.setdefault("links that lead nowhere", []).append(prefix + entry.name)
            except OSError:  # a link to itself
                left_out.setdefault("links that lead nowhere", []).append(prefix + entry.name)

    enter(str(folder), "")
    while linked:
        linked.sort()
        enter(*linked.pop(0))
    for what, names in left_out.items():
        warn_once(f"{folder}: left out {what}: {some(sorted(names))}")
    return files


def some(names: Sequence[str]) -> str:
    """The first few of a list, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@cache
def warn_once(message: str) -> None:
    """Warn of what a listing has found; sets are listed several times in a run."""
    warn(message)


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

    Returns:
        its path, whose name is shortened where no file system takes it.

    Raises:
        IdcError: the folder cannot be written to.
    """
    path = fitted(Path(path))
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
    return to_tensor(image.resize((size, size), Image.Resampling.LANCZOS, box=_square(image.size, size, number)))


def crop_pair(low: Image.Image, high: Image.Image, size: int, number: int, scale: int) -> tuple[Tensor, Tensor]:
    """The same square of a picture and its small copy, as `crop_square` chooses it; the copy's is enlarged.

    Args:
        low: the copy, RGB, its sides exactly 1 / scale of the picture's.
        high: the picture, RGB.
        size: side of the results in px, a multiple of scale.

    Returns:
        the copy's square, enlarged bicubically, and the picture's: (3, size, size), float32 in [0, 1].

    Raises:
        IdcError: the sides do not fit.
    """
    from torch.nn.functional import interpolate

    if (low.width * scale, low.height * scale) != high.size:
        raise IdcError(
            f"a small copy of {low.width}x{low.height} px is given for a picture of {high.width}x{high.height} px; "
            f"want 1/{scale} of its sides"
        )
    box = _square(low.size, size // scale, number)
    small = to_tensor(low.resize((size // scale,) * 2, Image.Resampling.LANCZOS, box=box))
    left, top, right, bottom = (scale * place for place in box)
    large = high.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    enlarged = interpolate(small[None], size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return enlarged[0], to_tensor(large)


def _square(image_size: tuple[int, int], size: int, number: int) -> tuple[int, int, int, int]:
    """The square (left, top, right, bottom) that `crop_square` cuts."""
    width, height = image_size
    shorter = min(width, height)
    side, across, down = shorter, 0.5, 0.5
    if number > 0:
        place = random.Random(number)
        side = min(shorter, max(size, 1, round(shorter * (0.5 + 0.4 * place.random()))))
        across, down = place.random(), place.random()
    left, top = round((width - side) * across), round((height - side) * down)
    return left, top, left + side, top + side


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

    The whole picture is kept. Where the rounding of a side leaves less than one multiple over, that is cut off evenly
    and the aspect ratio stays; a strip, of which it would be more, is squeezed into the rounded sides instead.

    Args:
        image: RGB, of any size.
        multiple: for example 8 times the number of latents' halvings.
        longest_px: the longer side of the result, rounded to a multiple; None: the image's own.
    """
    scale = 1.0 if longest_px is None else longest_px / max(image.size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in image.size)
    if (width, height) == image.size:
        return image
    cover = max(width / image.width, height / image.height)
    if max(cover * image.width - width, cover * image.height - height) >= multiple:
        return image.resize((width, height), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)
