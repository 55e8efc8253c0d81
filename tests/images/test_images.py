"""Any image file becomes upright 8-bit RGB with the right values, and a bad one is a clear line."""

import contextlib
import io
import os
import stat

import numpy as np
import pytest
import torch
from PIL import Image

from idcompress.errors import IdcError
from idcompress.images import pictures


def save(path, array, mode=None, **options):
    Image.fromarray(array, mode).save(path, **options) if mode else Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def photo():
    return (np.random.default_rng(0).random((20, 30, 3)) * 255).astype(np.uint8)


def pixels(path):
    image = pictures.load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_is_read_as_it_is(tmp_path, photo):
    assert np.array_equal(pixels(save(tmp_path / "photo.png", photo)), photo)


def test_a_right_image_under_a_wrong_suffix_is_read(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "photo.jpg", format="PNG")
    assert np.array_equal(pixels(tmp_path / "photo.jpg"), photo)


def test_one_pixel(tmp_path):
    assert pixels(save(tmp_path / "dot.png", np.full((1, 1, 3), 7, np.uint8))).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20] = 255
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    stored = stored.transpose(undo[orientation]) if orientation in undo else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "turned.png"), upright)


def test_alpha_lies_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (255, 0, 51)  # black: opaque, absent, a fifth
    assert pixels(save(tmp_path / "a.png", rgba))[0, :, 0].tolist() == [0, 255, 204]
    grey = np.array([[[10, 255], [10, 0]]], np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0].tolist() == [[10] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixels(tmp_path / "p.png")[0].tolist() == [[200, 0, 0], [255, 255, 255]]


def test_grey_palette_bilevel_and_cmyk(tmp_path):
    grey = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    assert np.array_equal(pixels(save(tmp_path / "l.png", grey)), np.stack([grey] * 3, -1))
    Image.fromarray(grey > 100).save(tmp_path / "1.png")
    assert np.array_equal(pixels(tmp_path / "1.png")[..., 0], (grey > 100) * np.uint8(255))
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert pixels(tmp_path / "cmyk.tif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    assert pixels(path)[0, :, 1].tolist() == [0, 1, 128, 255]
    # A dark scene stays dark: the range is the format's, not the picture's.
    Image.fromarray(np.full((2, 2), 514, np.uint16)).save(path)
    assert pixels(path).max() == 2


def test_big_endian_sixteen_bit(tmp_path):
    Image.frombytes("I;16B", (2, 1), b"\x00\x00\xff\xff").save(tmp_path / "deep.tif")
    assert pixels(tmp_path / "deep.tif")[0, :, 0].tolist() == [0, 255]


def test_sixteen_bit_colour(tmp_path):
    import cv2

    values = np.zeros((1, 2, 3), np.uint16)
    values[0, 1] = (65535, 32896, 0)  # blue, green, red
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    assert pixels(tmp_path / "deep.png")[0].tolist() == [[0, 0, 0], [0, 128, 255]]


def test_floating_point(tmp_path):
    save(tmp_path / "unit.tif", np.array([[0.0, 0.5, 1.0]], np.float32))
    assert pixels(tmp_path / "unit.tif")[0, :, 0].tolist() == [0, 128, 255]
    save(tmp_path / "bytes.tif", np.array([[0.0, 100.0, 255.0]], np.float32))
    assert pixels(tmp_path / "bytes.tif")[0, :, 0].tolist() == [0, 100, 255]
    for bad, text in ((-1.0, "from -1"), (1000.0, "to 1000"), (np.nan, "NaN")):
        save(tmp_path / "bad.tif", np.array([[0.0, bad]], np.float32))
        with pytest.raises(IdcError, match=text):
            pictures.load_image(tmp_path / "bad.tif")


def test_integers_beyond_sixteen_bits_are_refused(tmp_path):
    save(tmp_path / "wide.tif", np.array([[0, 70000]], np.int32))
    with pytest.raises(IdcError, match="to 70000"):
        pictures.load_image(tmp_path / "wide.tif")


def line(path):
    with pytest.raises(IdcError) as error:
        pictures.load_image(path)
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_each_mistake_has_its_line(tmp_path, photo):
    assert "no image file" in line(tmp_path / "gone.png")
    assert "is a folder" in line(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    assert "0 bytes" in line(tmp_path / "empty.png")
    (tmp_path / "notes.png").write_text("dear diary")
    assert "is no image" in line(tmp_path / "notes.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "webp", "bmp", "gif"])
def test_a_file_cut_short_is_refused(tmp_path, photo, kind):
    data = io.BytesIO()
    Image.fromarray(photo).save(data, format=kind.upper())
    for share in (0.9, 0.5, 0.1):
        path = tmp_path / f"half.{kind}"
        path.write_bytes(data.getvalue()[: int(len(data.getvalue()) * share)])
        assert "damaged" in (text := line(path)) or "is no image" in text


def test_damaged_bytes_are_refused_or_read_but_never_crash(tmp_path, photo):
    data = io.BytesIO()
    Image.fromarray(photo).save(data, format="PNG")
    generator = np.random.default_rng(0)
    for _ in range(60):
        raw = bytearray(data.getvalue())
        for position in generator.integers(8, len(raw), 3):
            raw[position] ^= int(generator.integers(1, 256))
        (tmp_path / "worn.png").write_bytes(raw)
        with contextlib.suppress(IdcError):
            assert pictures.load_image(tmp_path / "worn.png").mode == "RGB"


def test_a_folder_is_listed_sorted_and_deep(tmp_path, photo):
    for name in ("b.png", "a.JPG", "sub/c.webp", ".hidden/d.png", ".e.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in pictures.list_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "sub/c.webp"]


def test_a_folder_without_images_tells_what_it_holds(tmp_path):
    with pytest.raises(IdcError, match="no file at all"):
        pictures.list_images(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text("1")
    with pytest.raises(IdcError, match=r"3 x \.csv"):
        pictures.list_images(tmp_path)
    with pytest.raises(IdcError, match="is a file"):
        pictures.list_images(tmp_path / "0.csv")
    with pytest.raises(IdcError, match="there is no folder"):
        pictures.list_images(tmp_path / "gone")


def test_tensors_and_files_round_trip(tmp_path, photo):
    tensor = pictures.to_tensor(Image.fromarray(photo))
    assert tensor.shape == (3, 20, 30)
    assert tensor.dtype == torch.float32
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    path = pictures.save_png(tensor, tmp_path / "new" / "out.png")
    assert np.array_equal(pixels(path), photo)
    assert [p.name for p in path.parent.iterdir()] == ["out.png"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044
    assert np.asarray(pictures.to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1))).tolist() == [[[0, 128, 255]]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_a_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(IdcError, match="cannot write"):
        pictures.save_png(torch.zeros(3, 2, 2), tmp_path / "out.png")


def test_a_file_in_the_way_of_a_folder_is_a_line(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(IdcError, match="cannot write"):
        pictures.save_png(torch.zeros(3, 2, 2), tmp_path / "taken" / "out.png")


def test_the_first_crop_is_the_largest_centred_square():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    crop = pictures.crop_square(Image.fromarray(image), 10)
    assert crop.shape == (3, 10, 10)
    assert crop.min() == 1


def test_further_crops_differ_and_repeat(photo):
    image = Image.fromarray((np.random.default_rng(1).random((300, 400, 3)) * 255).astype(np.uint8))
    crops = [pictures.crop_square(image, 32, number) for number in range(6)]
    for number, crop in enumerate(crops):
        assert torch.equal(crop, pictures.crop_square(image, 32, number))
        assert all(not torch.equal(crop, other) for other in crops[:number])
        assert crop.min() >= 0
        assert crop.max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (31, 33), (64, 64)])
@pytest.mark.parametrize("number", [0, 1, 7])
def test_small_images_are_enlarged(shape, number):
    image = Image.fromarray(np.full((*shape, 3), 51, np.uint8))
    crop = pictures.crop_square(image, 64, number)
    assert crop.shape == (3, 64, 64)
    assert crop.unique().tolist() == pytest.approx([0.2])


def test_resizing_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = pictures.crop_square(Image.fromarray(stripes), 32)
    assert crop[..., 2:-2].std() < 0.01


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    [
        ((512, 512), None, (512, 512)),
        ((500, 333), None, (512, 320)),
        ((1, 1), None, (64, 64)),
        ((3000, 2000), 512, (512, 320)),
        ((100, 3000), 512, (64, 512)),
    ],
)
def test_sides_become_multiples(size, longest, wanted):
    assert pictures.fit_to_multiple(Image.new("RGB", size), 64, longest).size == wanted


def gradient(width, height):
    """Red grows to the right, green downwards: a crop's colours tell where it is from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8))


def test_random_crops_repeat_and_differ():
    picture = gradient(90, 60)
    made = [pictures.random_crop([picture], 16, np.random.default_rng(seed))[0] for seed in (0, 0, 1)]
    assert made[0].shape == (3, 16, 16)
    assert made[0].dtype == torch.float32
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("scales", [(0.5, 1.0), (1.0, 1.0), (0.0, 0.0)])
def test_pairs_are_cropped_alike_whatever_their_size(scales):
    for seed in range(20):
        one, other = pictures.random_crop(
            [gradient(90, 60), gradient(180, 120)], 16, np.random.default_rng(seed), scales=scales
        )
        assert (one - other).abs().max() < 0.03


def test_random_crops_have_the_scales_that_are_asked_for():
    picture = gradient(400, 200)
    for scales, low, high in (((0.5, 0.75), 0.25, 0.375), ((1.0, 1.0), 0.5, 0.5), ((0.0, 0.0), 0.08, 0.08)):
        for seed in range(20):
            crop = pictures.random_crop([picture], 32, np.random.default_rng(seed), scales=scales, flip=False)[0]
            width = float(crop[0].max() - crop[0].min()) * 32 / 31  # in units of the picture's width
            assert low - 0.02 < width < high + 0.02


def test_flips_happen_to_half_of_the_crops_or_none():
    picture = gradient(40, 40)
    for flip, low, high in ((True, 70, 130), (False, 0, 0)):
        crops = [pictures.random_crop([picture], 8, np.random.default_rng(i), flip=flip)[0] for i in range(200)]
        assert low <= sum(bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops) <= high


def test_a_small_picture_is_enlarged():
    assert pictures.random_crop([gradient(5, 9)], 16, np.random.default_rng(0))[0].shape == (3, 16, 16)
