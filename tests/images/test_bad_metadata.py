"""A good photograph with bad metadata is a good photograph, a size is no damage, and a value keeps its brightness."""

import contextlib
import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from idcompress.errors import IdcError
from idcompress.images import metadata, pictures

SIZE = (48, 40)
TYPES = range(1, 14)
TAGS = {"ImageWidth": 0x100, "Make": 0x10F, "XResolution": 0x11A, "ResolutionUnit": 0x128, "ExifIFD": 0x8769}
TAGS |= {"GPS": 0x8825, "Thumbnail": 0x201, "StripOffsets": 0x111, "BitsPerSample": 0x102, "MakerNote": 0x927C}


def block(tag, kind, turn_kind=3, order="<"):
    """EXIF with a tag of some type, its value nonsense, behind an orientation of 6."""
    turn = {
        1: b"\x06\0\0\0",
        2: b"6\0\0\0",
        3: struct.pack(f"{order}HH", 6, 0),
        4: struct.pack(f"{order}I", 6),
        5: struct.pack(f"{order}I", 38),
    }
    counts = {1: 1, 2: 2, 3: 1, 4: 1, 5: 1}
    entries = sorted(
        [
            (0x112, turn_kind, counts[turn_kind], turn[turn_kind]),
            (tag, kind, 1 if kind % 2 else 900, b"\x48\x65\xff\x7f"),
        ]
    )
    packed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", 2) + packed + bytes(4) + struct.pack(f"{order}II", 6, 1)


def picture():
    x, y = np.meshgrid(np.linspace(0, 255, SIZE[0]), np.linspace(0, 255, SIZE[1]))
    return Image.fromarray(np.stack([x, y, 128 + 0 * x], -1).astype(np.uint8))


def encoded(kind, **options):
    data = io.BytesIO()
    picture().save(data, kind, **options)
    return data.getvalue()


def with_segment(data, marker, body):
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def with_chunk(data, kind, body, *, crc=None, place=33):
    crc = zlib.crc32(kind + body) if crc is None else crc
    return data[:place] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc) + data[place:]


def webp_with(kind, body):
    """A lossless WebP with a further chunk, and the header that announces it."""
    simple = encoded("WEBP", lossless=True)[12:]
    flags = {b"EXIF": 8, b"XMP ": 4, b"ICCP": 32}[kind]
    header = struct.pack("<4sIB3x", b"VP8X", 10, flags) + b"".join(struct.pack("<I", side - 1)[:3] for side in SIZE)
    chunk = kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    parts = header + (chunk + simple if kind == b"ICCP" else simple + chunk)
    return b"RIFF" + struct.pack("<I", len(parts) + 4) + b"WEBP" + parts


def read(tmp_path, data, suffix):
    (tmp_path / f"x.{suffix}").write_bytes(data)
    return pictures.load_image(tmp_path / f"x.{suffix}")


def is_whole(image, *, turned=False, tolerance=3):
    wanted = picture().transpose(Image.Transpose.ROTATE_270) if turned else picture()
    assert image.size == wanted.size
    return np.abs(np.asarray(image, dtype=float) - np.asarray(wanted, dtype=float)).mean() <= tolerance


@pytest.mark.parametrize("order", "<>")
def test_exif_with_a_tag_of_a_wrong_type_keeps_its_orientation(tmp_path, order):
    jpeg, png = encoded("JPEG", quality=95), encoded("PNG")
    for tag, kind in itertools.product(TAGS.values(), TYPES):
        exif = block(tag, kind, order=order)
        assert is_whole(read(tmp_path, with_segment(jpeg, 0xE1, b"Exif\0\0" + exif), "jpg"), turned=True), (tag, kind)
        assert is_whole(read(tmp_path, with_chunk(png, b"eXIf", exif), "png"), turned=True), (tag, kind)
        assert is_whole(read(tmp_path, webp_with(b"EXIF", exif), "webp"), turned=True), (tag, kind)


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
def test_the_orientation_itself_may_be_of_any_type(tmp_path, kind):
    exif = bytearray(block(0x10F, 7, kind))
    if kind == 5:
        entry = 10 if struct.unpack_from("<H", exif, 10) == (0x112,) else 22
        struct.pack_into("<I", exif, entry + 8, len(exif) - 8)
    assert metadata.orientation(bytes(exif)) == 6
    image = read(tmp_path, with_segment(encoded("JPEG", quality=95), 0xE1, b"Exif\0\0" + bytes(exif)), "jpg")
    assert is_whole(image, turned=True)


@pytest.mark.parametrize("exif", [b"", b"II*\0", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff", b"\0" * 40])
def test_exif_that_is_cut_short_leaves_the_picture_upright(tmp_path, exif):
    assert metadata.orientation(exif) == 1
    assert is_whole(read(tmp_path, with_segment(encoded("JPEG"), 0xE1, b"Exif\0\0" + exif), "jpg"))
    assert is_whole(read(tmp_path, with_chunk(encoded("PNG"), b"eXIf", exif), "png"))
    assert is_whole(read(tmp_path, webp_with(b"EXIF", exif), "webp"))


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff<x:xmpmeta tiff:Orientation='twelve'"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\x01\x05" + bytes(9)),
        (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        (0xE2, b"MPF\0" + block(0xB001, 2)),
        (0xED, b"Photoshop 3.0\0008BIM\x03\xed\xff"),
        (0xE0, b"JFIF\0\x01"),
        (0xFE, b"\xff\xfe\0comment"),
    ],
)
def test_other_segments_of_a_jpeg_may_be_damaged(tmp_path, marker, body):
    assert is_whole(read(tmp_path, with_segment(encoded("JPEG", quality=95), marker, body), "jpg"))


def test_a_thumbnail_is_never_taken_for_the_picture(tmp_path):
    """A segment's length is too small, so that the thumbnail in it seems to be the next thing in the file."""
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    data = encoded("JPEG", quality=95)
    whole = with_segment(data, 0xE1, b"Exif\0\0" + block(0x128, 5) + thumbnail.getvalue())
    for length in (8, 16, 40, 50):
        broken = whole[:4] + struct.pack(">H", length) + whole[6:]
        with contextlib.suppress(IdcError):
            assert sorted(read(tmp_path, broken, "jpg").size) == sorted(SIZE), length
    assert is_whole(read(tmp_path, whole, "jpg"), turned=True)


@pytest.mark.parametrize(
    ("kind", "body", "crc"),
    [
        (b"iCCP", b"name\0\0no profile", None),
        (b"tEXt", b"key\0text", 7),
        (b"zTXt", b"key\0\0" + b"not deflated", None),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"\xff\xfe", None),
        (b"iTXt", b"key\0\x01\x00\0\0" + zlib.compress(bytes(3_000_000)), None),
        (b"zTXt", b"key\0\0" + zlib.compress(bytes(3_000_000)), None),
        (b"pHYs", b"\0", None),
        (b"gAMA", b"", None),
        (b"cHRM", b"\xff", 3),
        (b"eXIf", b"II", 1),
        (b"sRGB", b"", None),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_chunks_beside_the_picture_may_be_damaged(tmp_path, kind, body, crc, behind):
    data = encoded("PNG")
    place = len(data) - 12 if behind else 33
    assert is_whole(read(tmp_path, with_chunk(data, kind, body, crc=crc, place=place), "png"))


def test_damaged_profile_and_xmp_of_a_webp(tmp_path):
    for kind in (b"ICCP", b"XMP "):
        assert is_whole(read(tmp_path, webp_with(kind, b"\xff\xfe nonsense"), "webp"))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_tags_of_a_tiff_that_the_pixels_do_not_need(tmp_path, compression):
    data = bytearray(encoded("TIFF", compression=compression, dpi=(72, 72)))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    places = {struct.unpack_from("<H", data, p)[0]: p for p in range(start + 2, start + 2 + 12 * count, 12)}
    for tag, kind in itertools.product((282, 283, 296), TYPES):
        if tag in places:
            worn = bytearray(data)
            struct.pack_into("<HI", worn, places[tag] + 2, kind, 900)
            assert is_whole(read(tmp_path, bytes(worn), "tif"), tolerance=0), (tag, kind)


def test_noise_in_metadata_never_spoils_the_picture(tmp_path):
    rng = np.random.default_rng(0)
    jpeg, png = encoded("JPEG", quality=95), encoded("PNG")
    for _ in range(40):
        noise = bytearray(block(0x8769, 4) + bytes(60))
        for place in rng.integers(8, len(noise), 12):
            noise[place] = int(rng.integers(256))
        for data, suffix in (
            (with_segment(jpeg, 0xE1, b"Exif\0\0" + bytes(noise)), "jpg"),
            (with_chunk(png, b"eXIf", bytes(noise)), "png"),
            (webp_with(b"EXIF", bytes(noise)), "webp"),
        ):
            image = read(tmp_path, data, suffix)
            assert sorted(image.size) == sorted(SIZE)


def test_a_damaged_picture_is_refused_with_metadata_or_without(tmp_path):
    exif = b"Exif\0\0" + block(0x128, 5)
    for data, suffix in ((with_segment(encoded("JPEG"), 0xE1, exif), "jpg"), (webp_with(b"EXIF", exif), "webp")):
        with pytest.raises(IdcError, match=r"damaged|no image") as error:
            read(tmp_path, data[: len(data) // 2], suffix)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [struct.error, SyntaxError, IndexError, RuntimeError, OverflowError, AssertionError])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("two\nlines")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(IdcError, match=r"damaged image .*two lines") as caught:
        read(tmp_path, b"anything", "gif")
    assert "\n" not in str(caught.value)


# sizes


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "L"), ("JPEG", "RGB"), ("TIFF", "F"), ("PNG", "P"), ("PNG", "LA")])
def test_a_large_scan_is_halved(tmp_path, monkeypatch, kind, mode):
    monkeypatch.setattr(pictures, "WHOLE_PIXELS", 1300 * 600)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = Image.new("RGB", (1401, 601), "white")
    image.paste((0, 0, 0), (0, 0, 700, 601))
    image = image.convert("L").point(lambda v: v / 255, "F") if mode == "F" else image.convert(mode)
    image.save(tmp_path / "scan", kind)
    found = pictures.load_image(tmp_path / "scan")
    assert found.size == (701, 301)
    values = np.asarray(found)[:, :, 0]
    assert values[:, :348].max() < 5 and values[:, 353:].min() > 250
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    header = struct.pack(">II5B", 100_000, 90_000, 8, 0, 0, 0, 0)
    bomb = with_chunk(b"\x89PNG\r\n\x1a\n", b"IHDR", header, place=8)
    bomb = with_chunk(bomb, b"IDAT", zlib.compress(bytes(1000)), place=len(bomb))
    with pytest.raises(IdcError, match=r"too large.*9000000000 pixels.*limit of 536870912") as error:
        read(tmp_path, with_chunk(bomb, b"IEND", b"", place=len(bomb)), "png")
    assert "damaged" not in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    with pytest.raises(IdcError, match=r"too large.*1920 pixels.*limit of 1000"):
        read(tmp_path, encoded("JPEG"), "jpg")


# brightness


def brightness(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    return np.asarray(pictures.load_image(tmp_path / "deep.tif"))[..., 0]


@pytest.mark.parametrize("highlight", [1.0001, 1.02, 1.9, 2.0, 16.0, 200.0, 5000.0])
def test_highlights_leave_the_other_values_as_they_are(tmp_path, highlight):
    values = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    wanted = brightness(tmp_path, values)
    values[0, :3] = highlight
    assert (brightness(tmp_path, values)[0, :3] == 255).all()
    assert np.array_equal(brightness(tmp_path, values)[1:], wanted[1:])


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize(("scale", "top"), [(1, 255), (1, 90), (257, 65535), (257, 5000)])
def test_eight_and_sixteen_bits_in_thirty_two(tmp_path, kind, scale, top):
    values = np.linspace(0, top, 1024).round().astype(kind).reshape(32, 32)
    assert np.array_equal(brightness(tmp_path, values), np.round(values / scale).astype(np.uint8))


def test_a_resized_picture_may_ring(tmp_path):
    stripes = np.zeros((32, 32), np.float32)
    stripes[:, 8:16] = stripes[:, 20:28] = 1
    for full in (1, 255, 65535):
        resized = Image.fromarray(stripes * full).resize((61, 61), Image.Resampling.LANCZOS)
        values = np.asarray(resized)
        assert values.min() < 0 and values.max() > full
        assert np.array_equal(brightness(tmp_path, values), np.round((values * (255 / full)).clip(0, 255)))


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 4, 1024, dtype=np.float32),  # of [0, 1], much too bright, or of [0, 255], as dark as night
        np.linspace(0, 1000, 1024, dtype=np.float32),
        np.arange(0, 1024, dtype=np.int32),  # 10 bits
        np.linspace(-0.5, 1, 1024, dtype=np.float32),
        np.arange(-9, 1015, dtype=np.int32),
        np.linspace(0, 1e6, 1024, dtype=np.float32),
    ],
)
def test_a_range_that_cannot_be_told_is_refused(tmp_path, values):
    with pytest.raises(IdcError, match=r"whose range cannot be told; want .*0 \.\. 255"):
        brightness(tmp_path, values.reshape(32, 32))


# strips


@pytest.mark.parametrize("size", [(3000, 100), (100, 3000), (3000, 1), (640, 64), (700, 97), (5000, 333)])
@pytest.mark.parametrize(("multiple", "longest"), [(4, 64), (8, 512), (64, 512), (8, None)])
def test_a_strip_keeps_its_ends(size, multiple, longest):
    image = Image.new("RGB", size, "gray")
    width, height = size
    tenth = max(size) // 10
    image.paste((255, 0, 0), (0, 0, tenth, height) if width > height else (0, 0, width, tenth))
    image.paste((0, 0, 255), (width - tenth, 0, *size) if width > height else (0, height - tenth, *size))
    found = np.asarray(pictures.fit_to_multiple(image, multiple, longest).convert("RGB")).astype(int)
    if found.shape[0] > found.shape[1]:
        found = found.transpose(1, 0, 2)
    row = found[found.shape[0] // 2]
    assert row[0, 0] > 200 and row[-1, 2] > 200
    red = (row[:, 0] > 200).mean()
    assert red == pytest.approx(0.1, abs=max(0.02, multiple / len(row)))


# listing and writing


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture().save(path)


def listed(folder):
    return [path.relative_to(folder).as_posix() for path in pictures.list_images(folder)]


def test_links_are_followed_once(tmp_path):
    folder, elsewhere = tmp_path / "photos", tmp_path / "disk"
    touch(folder / "own" / "a.png")
    touch(elsewhere / "b.png")
    (folder / "also").symlink_to(folder / "own")  # listed by its own name
    (folder / "disk").symlink_to(elsewhere)
    (folder / "disk2").symlink_to(elsewhere)
    (folder / "own" / "up").symlink_to(folder)
    (elsewhere / "self").symlink_to(elsewhere)
    (folder / "c.png").symlink_to(elsewhere / "b.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "turn.png").symlink_to(folder / "turn.png")
    (tmp_path / "all").symlink_to(folder)
    assert listed(tmp_path / "all") == ["c.png", "disk/b.png", "own/a.png"]


def test_links_that_are_left_out_are_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(pictures, "warn", told.append)
    touch(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert listed(tmp_path) == ["a.png"]
    assert len(told) == 2
    assert any("links that lead nowhere: gone.png" in line for line in told)
    assert any("linked folders that are listed already: loop/" in line for line in told)


@pytest.mark.parametrize("name", ["n" * 244, "ä" * 125, "字" * 83, "n" * 251])
def test_a_name_of_any_length_is_written(tmp_path, name):
    path = pictures.save_png(pictures.to_tensor(picture()), tmp_path / "out" / f"{name}.png")
    assert path.name == f"{name}.png"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("letter", ["n", "ä", "字", "\udcff"])
def test_a_name_that_is_too_long_is_shortened(tmp_path, letter):
    image = pictures.to_tensor(picture())
    paths = [pictures.save_png(image, tmp_path / f"{letter * 300}{number}.png") for number in range(2)]
    assert len({path.name for path in paths}) == 2
    for path in paths:
        assert path.is_file() and path.suffix == ".png" and path.name.startswith(letter * 50)
