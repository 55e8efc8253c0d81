"""What translate, report and export write: nothing over a file that this command did not make."""

import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def translate(idc, random_model):
    def run(*arguments, code=0):
        model = f"model.path={random_model('ip2p')}"
        result = idc("translate", model, "recipe=none", "num_inference_steps=1", "prompt=make it warmer", *arguments)
        assert result.code == code, result.err
        return result

    return run


def picture(path, shade=100):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 24), (shade, 0, 255 - shade)).save(path)
    return Path(path).read_bytes()


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_users_pictures_stay(translate):
    theirs, source = picture("pictures/a.png"), picture("pictures/a.jpg")
    listing = Path("pictures/translate.json")
    listing.write_text("theirs")
    out = translate("image=pictures/a.jpg", "output.path=pictures").out
    assert Path("pictures/a.png").read_bytes() == theirs and Path("pictures/a.jpg").read_bytes() == source
    assert listing.read_text() == "theirs" and "a_2.png" in out
    assert names("pictures") == ["a.jpg", "a.png", "a_2.png", "translate.json", "translate_2.json"]
    (row,) = json.loads(Path("pictures/translate_2.json").read_text())["images"]
    assert row["output"] == "a_2.png"


def test_a_result_is_never_written_over_its_input(translate):
    source = picture("a.png")
    translate("image=a.png", "output.path=.")
    assert Path("a.png").read_bytes() == source and Path("a_2.png").is_file()
    err = translate("image=a.png", "output.path=.", "output.overwrite=true", code=2).err
    assert "would overwrite its input" in err and Path("a.png").read_bytes() == source


def test_the_same_command_replaces_its_own_files_and_another_one_does_not(translate):
    picture("a.png")
    common = ("image=a.png", "output.path=out")
    for _ in range(2):
        translate(*common)
        assert names("out") == ["a.png", "translate.json"]
    first = Path("out/a.png").read_bytes()
    translate(*common, "seed=1")
    assert names("out") == ["a.png", "a_2.png", "translate.json", "translate_2.json"]
    assert Path("out/a.png").read_bytes() == first
    translate(*common, "seed=1", "output.overwrite=true")
    assert Path("out/a.png").read_bytes() == Path("out/a_2.png").read_bytes() != first


def test_the_jobs_of_a_sweep_share_a_folder(translate):
    picture("a.png")
    translate("image=a.png", "output.path=out", "seed=0,1,2", "-m")
    listings = [json.loads(path.read_text()) for path in sorted(Path("out").glob("translate*.json"))]
    assert sorted(row["output"] for listing in listings for row in listing["images"]) == ["a.png", "a_2.png", "a_3.png"]
    assert len({path.read_bytes() for path in Path("out").glob("a*.png")}) == 3


def test_a_sweep_leaves_a_strangers_file_in_its_folder(translate):
    picture("a.png")
    sweep = ("image=a.png", "hydra.sweep.dir=sweep", "-m")
    Path("sweep").mkdir()
    file = Path("sweep/multirun.yaml")
    file.write_text("theirs")
    err = translate(*sweep, "seed=0", code=2).err
    assert "multirun.yaml" in err and "another hydra.sweep.dir" in err and err.count("\n") == 1
    assert file.read_text() == "theirs" and names("sweep") == ["multirun.yaml"]
    file.unlink()
    translate(*sweep, "seed=0")
    first = file.read_text()
    translate(*sweep, "seed=0")
    assert file.read_text() == first and not Path("sweep/multirun.yaml.1").exists()
    translate(*sweep, "seed=2")
    assert file.read_text() != first and Path("sweep/multirun.yaml.1").read_text() == first


@pytest.mark.parametrize("size", [(1, 1), (16, 12000), (3000, 4), (8, 512)])
def test_a_comparison_of_strips_stays_small(size):
    from idcompress.stages.translate import side_by_side

    strip = Image.new("RGB", size, "red")
    sheet = side_by_side([("original, 50 steps: 1.00 s", strip), ("depth 9, 10 steps: 0.20 s", strip)])
    reds = sum(number for number, colour in sheet.getcolors(2**24) if colour == (255, 0, 0))
    assert reds >= 2 * size[0] * size[1] and reds % (2 * size[0] * size[1]) == 0  # both of them, whole
    assert sheet.height <= max(1024, size[1]) + 36 and sheet.width >= 2 * size[0] + 24


def test_comparisons_have_names_of_their_own(translate):
    for name in ("x.jpg", "x_compare.jpg"):
        picture(f"in/{name}", len(name))
    theirs = picture("out/x_compare.png")
    translate("image=in", "output.path=out", "translate.compare=true")
    rows = json.loads(Path("out/translate.json").read_text())["images"]
    made = [row[kind] for row in rows for kind in ("output", "compare")]
    assert len(set(made)) == 4 and "x_compare.png" not in made
    assert Path("out/x_compare.png").read_bytes() == theirs


def test_a_report_gets_a_free_name(idc, tmp_path):
    from report import run_folders

    top = run_folders.compress_run(Path.cwd(), [3])
    Path("public").mkdir()
    Path("public/report.md").write_text("theirs")
    for _ in range(2):
        assert idc("report", f"report.path={top}", "output.path=public").code == 0
        assert names("public") == ["report.md", "report_2.html", "report_2.md"]
    assert Path("public/report.md").read_text() == "theirs"


def test_an_export_leaves_a_strangers_partial_folder(idc, random_model):
    Path("new.partial").mkdir()
    Path("new.partial/theirs").write_text("theirs")
    result = idc("export", f"model.path={random_model('ip2p')}", "recipe=none", "export.path=new")
    assert result.code == 0, result.err
    assert names(".") == ["new", "new.partial", "outputs"] and names("new.partial") == ["theirs"]
