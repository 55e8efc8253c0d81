"""What image files hold beside the picture: its orientation is read where it can be, the rest can be taken away."""

from __future__ import annotations

import struct
from typing import Any

ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Tags of a TIFF file without which its pixels cannot be read, or not rightly.
_TIFF_NEEDED = {
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332),
    *(338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def without(data: bytes) -> tuple[bytes, int | None]:
    """An image file without its metadata, and the orientation, 1 .. 8, that they told.

    Returns:
        the same bytes for formats that are not known here. The orientation is None where the file still has it.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return _bare_jpeg(data)
        if data[:8] == _PNG:
            return _bare_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _bare_webp(data)
        if data[:4] in (b"II*\0", b"MM\0*"):
            return _bare_tiff(data), None
    except (struct.error, IndexError, ValueError):
        pass  # too damaged to be taken apart
    return data, None


def number(value: Any) -> int:
    """An orientation of whatever type as a number, 1 where it is none."""
    try:
        if isinstance(value, (tuple, list)):
            value = value[0]
        if isinstance(value, bytes) and len(value) == 1 and value < b"\x09":
            value = value[0]
        found = int(value.strip(b" \0") if isinstance(value, bytes) else value)
    except (TypeError, ValueError, IndexError, ArithmeticError):
        return 1
    return found if 1 <= found <= 8 else 1


def orientation(exif: bytes) -> int:
    """The orientation that a block of EXIF tells, whatever else in it is wrong; 1 where it tells none."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        for place in _entries(exif, order, start):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == ORIENTATION:
                return number(_value(exif, order, place + 8, kind, count))
    except (struct.error, KeyError):
        pass
    return 1


def _entries(data: bytes, order: str, start: int) -> list[int]:
    """Where the entries of a directory begin, as far as the data go."""
    (count,) = struct.unpack_from(f"{order}H", data, start)
    return [place for place in range(start + 2, start + 2 + 12 * count, 12) if place + 12 <= len(data)]


def _value(data: bytes, order: str, place: int, kind: int, count: int) -> Any:
    size = _TIFF_SIZES.get(kind, 1)
    if size * count > 4:
        (place,) = struct.unpack_from(f"{order}I", data, place)
    if kind in (5, 10):
        above, below = struct.unpack_from(f"{order}II", data, place)
        return above / below if below else None
    if kind in (1, 2, 6, 7):
        return data[place : place + min(count, 8)].rstrip(b"\0") or b"\0"
    return struct.unpack_from(order + {3: "H", 4: "I", 8: "h", 9: "i", 11: "f", 12: "d"}[kind], data, place)[0]


def _bare_jpeg(data: bytes) -> tuple[bytes, int]:
    """Without its application segments and comments, but with JFIF's and Adobe's, which tell the colours."""
    kept, place, turn = [data[:2]], 2, 1
    while place < len(data):
        if data[place] != 0xFF:
            raise ValueError("a segment's length is wrong")  # what follows may be a thumbnail, so nothing is searched
        marker = data[place + 1]
        if marker == 0xFF or marker in _JPEG_BARE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # the picture itself, to the end
            kept.append(data[place:])
            break
        (length,) = struct.unpack_from(">H", data, place + 2)
        segment = data[place : place + 2 + length]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0" and turn == 1:
            turn = orientation(segment[4:])
        colours = segment[4:9] in (b"JFIF\0", b"Adobe") and len(segment) >= 16
        if colours or not (marker == 0xFE or 0xE0 <= marker <= 0xEF):
            kept.append(segment)
        place += 2 + length
    return b"".join(kept), turn


def _bare_png(data: bytes) -> tuple[bytes, int]:
    """Only the chunks that the picture is made of, with their own checksums."""
    kept, place, turn = [_PNG], len(_PNG), 1
    while place + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if kind == b"eXIf":
            turn = orientation(data[place + 8 : end - 4])
        if kind in _PNG_NEEDED:
            kept.append(data[place:end])
        place = end
    return b"".join(kept), turn


def _bare_webp(data: bytes) -> tuple[bytes, int]:
    """Without EXIF, XMP and the colour profile."""
    kept, place, turn = [], 12, 1
    while place + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, place + 4)
        kind, end = data[place : place + 4], place + 8 + length + length % 2
        chunk = bytearray(data[place:end])
        if kind == b"EXIF":
            turn = orientation(bytes(chunk[8 : 8 + length]))
        elif kind not in (b"XMP ", b"ICCP"):
            if kind == b"VP8X":
                chunk[8] &= ~(0x20 | 0x08 | 0x04)  # no profile, EXIF or XMP follows
            kept.append(bytes(chunk))
        place = end
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, turn


def _bare_tiff(data: bytes) -> bytes:
    """The first directory with the tags that its pixels need; the file stays as it is beyond."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    kept = []
    for place in _entries(data, order, start):
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, place)
        if tag == ORIENTATION:  # of the type that it should be, whatever type it is
            turn = number(_value(data, order, place + 8, kind, count))
            kept.append(struct.pack(f"{order}HHIHH", tag, 3, 1, turn, 0))
        elif tag in _TIFF_NEEDED:
            kept.append(data[place : place + 12])
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:start] + directory + data[start + len(directory) :]
