"""Former module names are the present modules, and recipes can still be made with the first format's words."""

import importlib
import subprocess
import sys

import pytest

from idcompress import Recipe, _moved, gamma_timesteps
from idcompress.core.cut import Cut


@pytest.mark.parametrize("name", [*_moved.MOVED, "idcompress.artifacts.recipe", "idcompress.data.canny"])
def test_a_former_name_is_the_present_module(name):
    present = _moved.present_name(name)
    assert present is not None
    with pytest.warns(DeprecationWarning, match=f"{name} is now {present}"):
        sys.modules.pop(name, None)
        found = importlib.import_module(name)
    assert found is importlib.import_module(present)
    assert found.__name__ == found.__spec__.name == present


def test_what_never_was_is_not_found():
    for name in ("idcompress.data.nothing", "idcompress.datas"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_imports_of_before_in_a_new_process():
    code = (
        "from idcompress.data.photographs import from_folder; from idcompress.data.images import load_image; "
        "from idcompress.artifacts.recipe import Recipe; import idcompress; assert Recipe is idcompress.Recipe"
    )
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)


def test_a_recipe_in_the_words_of_the_first_format():
    model = {"name": "tiny"}
    made = Recipe(task="ip2p", model=model, depth=6, timesteps=(999, 500), num_inference_steps=2, guidance={"a": 2.0})
    assert (made.cut, made.timesteps, made.guidance) == (Cut("depth_skip", {"depth": 6}), (999, 500), {"a": 2.0})
    free = Recipe(task="ip2p", model=model, num_inference_steps=4)
    assert (free.depth, free.timesteps, free.num_inference_steps) == (None, None, 4)
    assert free.plan.timesteps == tuple(gamma_timesteps(1.0, 4))
