"""The wheel holds all that it needs and works outside the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"idcompress/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "idcompress").rglob("*.py")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "idcompress/models").rglob("*.json")}
    wanted |= {str(p.relative_to(ROOT)) for p in (ROOT / "idcompress/models").rglob("*.safetensors")}
    assert wanted <= names, wanted - names


def test_works_outside_the_repository(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site)}
    script = (
        "import idcompress, sys; from idcompress import cli, config;"
        f"assert idcompress.__file__.startswith({str(site)!r}), idcompress.__file__;"
        f"assert str(config.conf_dir()).startswith({str(site)!r});"
        "cli.main(['depth-search', 'task=controlnet', '--cfg', 'job'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "name: controlnet" in done.stdout
