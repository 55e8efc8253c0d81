"""Small data sets, written in the layouts of the real ones."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image


def jpeg(value, size=(24, 16)):
    """Bytes of a JPEG of one colour."""
    data = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(data, "JPEG", quality=95)
    return data.getvalue()


def colour(image):
    """The mean value of an image of one colour."""
    return round(float(np.asarray(image, dtype=float).mean()))


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(value))
    return path


@pytest.fixture
def pairs(tmp_path):
    """InstructPix2Pix's folders: 40 instructions, of which those at even places have two pairs."""
    listed = []
    for number in range(40):
        name, seeds = f"{number:07d}", [str(100 + number)] + ([str(200 + number)] if number % 2 == 0 else [])
        for place, seed in enumerate(seeds):
            put(tmp_path / name / f"{seed}_0.jpg", 2 * number + 100 * place)
            put(tmp_path / name / f"{seed}_1.jpg", 2 * number + 100 * place + 20)
        texts = {"input": f"scene {number}", "edit": f"edit {number}", "output": f"edited scene {number}"}
        (tmp_path / name / "prompt.json").write_text(json.dumps(texts))
        listed.append([name, seeds])
    (tmp_path / "seeds.json").write_text(json.dumps(listed))
    return tmp_path


@pytest.fixture
def tables(tmp_path):
    """Hugging Face's copy of InstructPix2Pix: two parquet files of 20 rows, 8 to a row group."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    for number in range(2):
        rows = range(20 * number, 20 * number + 20)
        columns = {
            "original_prompt": arrow.array([f"scene {i}" for i in rows]),
            "original_image": arrow.array([{"bytes": jpeg(2 * i), "path": None} for i in rows], image),
            "edit_prompt": arrow.array([f"edit {i}" for i in rows]),
            "edited_prompt": arrow.array([f"edited scene {i}" for i in rows]),
            "edited_image": arrow.array([{"bytes": jpeg(2 * i + 100), "path": None} for i in rows], image),
        }
        path = tmp_path / "data" / f"train-{number:05d}-of-00002-0123456789abcdef.parquet"
        path.parent.mkdir(exist_ok=True)
        parquet.write_table(arrow.table(columns), path, row_group_size=8)
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    """COCO 2017: three photographs to train, five to validate, and one without a caption."""
    for part, first, number in (("train2017", 9, 3), ("val2017", 139, 5)):
        ids = [first + 7 * i for i in range(number)]
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 16, "width": 24, "license": 3} for i in ids]
        for image in images:
            put(tmp_path / part / image["file_name"], image["id"] % 250)
        images.append({"id": 1, "file_name": "000000000001.jpg"})
        put(tmp_path / part / "000000000001.jpg", 1)
        captions = [
            {"id": 1000 - 10 * place - i, "image_id": i, "caption": f"caption {place} of {i} \n"}
            for i in ids
            for place in range(2)
        ]
        path = tmp_path / "annotations" / f"captions_{part}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": captions}))
    return tmp_path


@pytest.fixture
def div2k(tmp_path):
    """DIV2K-valid: four photographs, and small copies that are not to be read."""
    for number in range(801, 805):
        put(tmp_path / "DIV2K" / "DIV2K_valid_HR" / f"{number:04d}.png", number % 250)
        put(tmp_path / "DIV2K" / "DIV2K_valid_LR_bicubic" / "X4" / f"{number:04d}x4.png", 1)
    return tmp_path / "DIV2K"


@pytest.fixture
def captioned(coco):
    """COCO with a caption of a captioning model for every photograph of val2017."""
    names = sorted(path.name for path in (coco / "val2017").iterdir())
    (coco / "blip.json").write_text(json.dumps({name: f"a square, {name}" for name in names}))
    return coco


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """WebDataset: two shards of ten images with captions; the index goes to a folder of its own."""
    from idcompress.datasets import shards as module

    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    for number in range(2):
        members = {}
        for i in range(10 * number, 10 * number + 10):
            members[f"{i:09d}.jpg"] = jpeg(10 * i)
            members[f"{i:09d}.txt"] = f"caption {i}\n".encode()
            members[f"{i:09d}.json"] = json.dumps({"caption": "not this one", "width": 24}).encode()
        write_tar(tmp_path / "set" / f"{number:05d}.tar", members)
    return tmp_path / "set"
