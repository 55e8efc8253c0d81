"""Prompts, paths and names reach the task letter by letter, whatever signs are in them."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from idcompress import cli, words
from idcompress import config as configuration
from idcompress.errors import IdcError
from idcompress.words import Text

SIGNS = [
    "don't move the dog",
    "make it red, please",
    "what if it were snowing?",
    "make the car (on the left) blue",
    "turn it into a Monet #3",
    "swap 50% & 50%",
    "a=b, c: d; {e} [f] <g> |h| !i ^j *k @l",
    "~ and ~",
    "say \"hello\", then 'bye'",
    "'it's' and \"that\"",
    "C:\\pictures\\new\\",
    "costs $5 or ${10} or \\${x} or \\\\${y} or ${",
    "日本の冬にして",
    "сделай чёрно-белым",
    "hazlo más cálido",
    "اجعلها حمراء",
    "make it 🌈 👩‍👩‍👧",
    "  spaces around  ",
    "two\nlines\tand a tab",
    "",
    *(
        "1e3",
        "true",
        "null",
        "007",
        "1_000",
        "~",
        "-",
        "yes",
        "???",
        "inf",
        ".5",
        "0x1f",
        "2024-01-01",
        "[a, b]",
        "{a: b}",
    ),
    *("choice(a,b)", "range(3)", "a\\,b", '"', "'", "\\", '\\"', "-x", "--help", "=", "a\\'b"),
]


def held_by(text: str) -> str:
    """What Hydra and OmegaConf read from a word."""
    parsed = OverridesParser.create().parse_override(words.override("prompt", text))
    value = parsed._value
    return OmegaConf.to_container(
        OmegaConf.create({"x": value.text if isinstance(value, QuotedString) else value}), resolve=True
    )["x"]


@pytest.mark.parametrize("text", SIGNS)
def test_a_text_survives_the_grammar(text):
    assert held_by(text) == text
    read = words.read(words.override("prompt", text), configuration.text_of, sweep=False)
    assert read.values == (text,), "a child process reads what it is handed on"
    assert read.hydra == words.override("prompt", text)
    typed = shlex.split(words.for_the_shell("prompt", text))
    assert words.read(*typed, configuration.text_of, sweep=True).values == (text,)


@pytest.mark.parametrize("text", SIGNS)
def test_prompts_are_typed_as_they_are(text):
    assert words.read(f"prompt={text}", configuration.text_of, sweep=False).values == (text,)


LISTS = {
    "[a.png,b.png]": ["a.png", "b.png"],
    "[a.png, b.png ]": ["a.png", "b.png"],
    "['a, b.png',\"c.png\"]": ["a, b.png", "c.png"],
    "[it's.png,dogs'.png]": ["it's.png", "dogs'.png"],
    "[a[1].png,b[2,3].png]": ["a[1].png", "b[2,3].png"],
    "[007,true,~/x]": ["007", "true", "HOME/x"],
    '["~/a b",~]': ["HOME/a b", "HOME"],
    "[a\\,b.png]": ["a,b.png"],
    "[]": [],
    "[a](b)[c]": "[a](b)[c]",
    "a[1].png": "a[1].png",
    "[a": "[a",
    '"[a,b]"': "[a,b]",
    "null": None,
    "~/x": "HOME/x",
    "'~/x'": "HOME/x",
    "a~b": "a~b",
}


@pytest.mark.parametrize("written", LISTS)
@pytest.mark.parametrize("key", ["image", "data.path"])
def test_lists_and_home(written, key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of a user")
    wanted = json.loads(json.dumps(LISTS[written]).replace("HOME", "/home/of a user"))
    assert words.read(f"{key}={written}", configuration.text_of, sweep=False).values == (wanted,)


SWEEPS = {
    "prompt=a red dog, a blue one": ("a red dog", "a blue one"),
    'prompt=don\'t,"do, it"': ("don't", "do, it"),
    "prompt='make it red, please'": ("make it red, please",),
    "prompt=yes\\, sir,no": ("yes, sir", "no"),
    "prompt=[a,b]": ("[a", "b]"),
    "image=[a,b],[c]": (["a", "b"], ["c"]),
    "recipe=choice(a,b)": (),
    "data.path=~/a,b": ("HOME/a", "b"),
    "hydra.sweep.dir=a,b": ("a,b",),
    "seed=1,2": ("1,2",),
}


@pytest.mark.parametrize("word", SWEEPS)
def test_a_comma_separates_the_values_of_a_sweep(word, monkeypatch):
    monkeypatch.setenv("HOME", "HOME")
    assert words.read(word, configuration.text_of, sweep=True).values == SWEEPS[word]


def test_an_empty_entry_is_refused_with_the_way_to_write_it(idc):
    result = idc("translate", "-m", "prompt=yes, ", "image=x.png")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "'prompt=\"yes, \"'" in result.err


TEXT_KEYS = """
    prompt image recipe data.path output.path export.path export.push_to model.path model.revision report.path
    convert.main_ckpt convert.cfw_ckpt convert.config finetune.checkpoint task.prompts metrics.lpips.weights
    metrics.clip_aesthetic.head data.options.captions_file hydra.run.dir hydra.sweep.dir
"""


@pytest.mark.parametrize("key", TEXT_KEYS.split())
def test_keys_whose_values_are_text(key):
    assert configuration.text_of(key) is not None


def test_other_keys_are_left_to_hydra():
    for key in (
        "seed",
        "device",
        "task",
        "metrics",
        "metrics.lpips.net",
        "weights",
        "data",
        "prompt.x",
        "trainer.devices",
    ):
        assert configuration.text_of(key) is None, key
    assert words.read("seed=1e3", configuration.text_of, sweep=False).hydra == "seed=1e3"


def test_every_text_of_the_schema_keeps_null_except_prompts():
    assert words.read("prompt=null", configuration.text_of, sweep=False).values == ("null",)
    assert words.read("~prompt", configuration.text_of, sweep=False).hydra == "prompt=null"
    assert words.read("model.path=null", configuration.text_of, sweep=False).values == (None,)
    assert words.read('model.path="null"', configuration.text_of, sweep=False).values == ("null",)


MISTAKES = {
    "seed=a(b": "'seed=\"a(b\"'",
    "seed=1,2": "seed=[1,2]",
    "promt=don't, please": "did you mean 'prompt'",
    "sampler=ddim'": "shell",
    "red": "in quotes like 'image=x.png red'",
    "image=[a,,b]": "'image=\"[a,,b]\"'",
    "prompt=@nothere.txt": "there is no file 'nothere.txt'",
    "prompt=@empty.txt": "holds no prompt",
    "prompt=@latin.txt": "not UTF-8",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes_show_the_quoted_form(idc, word):
    Path("empty.txt").write_text("\n  \n")
    Path("latin.txt").write_bytes("été\n".encode("latin-1"))
    result = idc("translate", "image=x.png", word)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert MISTAKES[word].replace("shell", "'sampler=\"ddim'\"'\"'\"'") in result.err
    for name in ("Lexer", "mismatched", "extraneous", "viable", "EOF", "hydra.cc"):
        assert name not in result.err


# Through the command line ---------------------------------------------------------------------------------------------


@pytest.fixture
def received(idc, monkeypatch):
    """Run `idc translate` with a stage that only notes its configuration; gives what it was given."""
    from idcompress.stages import translate

    seen = []
    monkeypatch.setattr(translate, "run", lambda config, recipes, run_dir: seen.append((config, list(sys.argv))) or [])

    def run(*arguments: str):
        seen.clear()
        result = idc("translate", "recipe=none", *arguments)
        assert result.code == 0, result.err
        return seen[0] if len(seen) == 1 else list(seen)

    return run


def test_a_child_process_receives_the_same(received):
    texts = ["don't, ${x}", "???", "a \\${b}, 'c' \"d\"\\", "007", "~"]
    folder = "out ${y}, it's"
    for text in texts:
        config, argv = received(
            f"prompt={text}", f"image=[{words.quoted(words.escaped(text))},b]", f"output.path={folder}"
        )
        assert config.prompt == text
        assert config.image == [words.home(text), "b"]
        again, argv_again = received(*[word for word in argv[2:] if not word.startswith("recipe=")])
        assert (again.prompt, again.image, again.output.path) == (config.prompt, config.image, folder)
        assert argv_again == argv


def test_the_run_folder_is_taken_as_text(received, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _, argv = received("prompt=a", "hydra.run.dir=~/run, (1)")
    assert (tmp_path / "home" / "run, (1)").is_dir()
    assert not Path("~").exists()
    received(*argv[2:3], argv[-1])
    received("prompt=a", "hydra.run.dir=seed_${seed}")
    assert Path("seed_0").is_dir(), "in Hydra's own keys ${...} is Hydra's"


def test_bytes_that_python_takes_for_no_letters(received, idc):
    """As a shell hands them on under an ASCII locale, or from files that another system has named."""
    raw = os.fsdecode(b"caf\xe9.png")
    config, argv = received(
        f"image=[{raw},b]", f"output.path={raw}", "prompt=日本".encode().decode("ascii", "surrogateescape")
    )
    assert (config.image, config.output.path, config.prompt) == ([raw, "b"], raw, "日本")
    assert received(*[word for word in argv[2:] if not word.startswith("recipe=")])[0].image == [raw, "b"]
    result = idc("translate", f"prompt={raw}")
    assert result.code == 2 and "is not UTF-8 text" in result.err and result.err.count("\n") == 1


def test_a_sweep_over_prompts(received):
    jobs = received("-m", 'prompt=don\'t ${x},"red, please",1e3', "output.path=o")
    assert [config.prompt for config, _ in jobs] == ["don't ${x}", "red, please", "1e3"]


def test_home_in_a_yaml_file(received, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/u")
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ndata: {path: [~/a, b]}\nmetrics: {fid: {weights: ~/w}}\nprompt: ~/p\n"
    )
    config, _ = received("--config-dir", str(own.parent), "experiment=mine")
    assert config.data.path == ["/home/u/a", "b"]
    assert config.metrics["fid"]["weights"] == "/home/u/w"
    assert config.prompt == "~/p"


def test_a_recipe_hands_its_model_on(idc, monkeypatch):
    from idcompress.runs.recipe import Recipe

    folder = "it's, a ${model} #1"
    monkeypatch.setattr(
        Recipe, "load", lambda path: SimpleNamespace(task="ip2p", model={"name": "tiny", "given_path": folder})
    )
    shown = yaml.safe_load(idc("translate", "recipe=some (1).json", "--cfg", "job").out)
    assert shown["model"]["path"] == folder
    assert shown["recipe"] == "some (1).json"
    wrong = idc("translate", "recipe=some (1).json", "model.path=other", "--cfg", "job")
    assert "contradicts" in wrong.err
    assert idc("translate", "recipe=some (1).json", f"model.path={folder}", "--cfg", "job").code == 0


def test_prompts_from_a_file(received):
    Path("my prompts, 1.txt").write_text("\ufeffmake it red, please\r\n\n  \n@home #1\n日本\n", encoding="utf-8")
    config, _ = received("prompt=@my prompts, 1.txt")
    lines = ["make it red, please", "@home #1", "日本"]
    assert config.prompts() == lines
    assert [config.prompt_of(i) for i in range(4)] == [*lines, lines[0]]
    config, _ = received("prompt=@@home")
    assert config.prompts() == ["@home"]
    config, _ = received()
    assert config.prompts() == []
    assert config.prompt_of(0) is None


def test_a_changed_file_of_prompts_is_another_run(received):
    def of_run(path):
        return configuration.identity(OmegaConf.create({"prompt": path}))

    Path("p.txt").write_text("a\n")
    first = of_run("@p.txt")
    Path("p.txt").write_text("b\n")
    assert of_run("@p.txt") != first
    assert of_run("b") == {"prompt": "b"}


def test_translate_takes_a_line_per_picture(idc, random_model):
    for name in "abc":
        Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(f"{name}.png")
    Path("p.txt").write_text("make it red\nmake it blue\n")
    model = f"model.path={random_model('ip2p')}"
    result = idc("translate", "experiment=smoke", model, "recipe=none", "image=[a.png,b.png,c.png]", "prompt=@p.txt")
    assert result.code == 0, result.err
    rows = json.loads(next(Path("outputs").rglob("translate.json")).read_text())["images"]
    assert [row["prompt"] for row in rows] == ["make it red", "make it blue", "make it red"]


# All of Unicode -------------------------------------------------------------------------------------------------------

LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.text(st.one_of(st.sampled_from(" '\",[](){}#%&=~\\$:;?!*@|-+.0123456789e"), LETTERS), max_size=30) | (
    st.sampled_from(SIGNS)
)
QUIET = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]


def typed(text: str, mark: Text) -> str:
    """A text as a user types it: itself, unless it looks like one of the few things that are no plain text."""
    plain = words.unquoted(text) is None and not (text == "null" and not mark.prompt)
    return text if plain and not (mark.several and text.startswith("[")) else words.quoted(words.escaped(text))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS)
def test_any_text_survives_the_grammar(text):
    assert held_by(text) == text
    assert words.unquoted(words.quoted(text)) == text
    assert words.unescaped(words.escaped(text)) == text
    for sweep in (False, True):
        read = words.read(words.override("prompt", text), configuration.text_of, sweep=sweep)
        assert read.values == (text,)
    entries = f"image=[{words.quoted(words.escaped(text))},b]"
    assert words.read(entries, configuration.text_of, sweep=True).values == ([words.home(text), "b"],)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(st.lists(TEXTS, min_size=8, max_size=8))
def test_any_text_reaches_the_task(received, texts):
    texts[1] = texts[1] or "a"  # no name is no picture
    keys = ["prompt", "image", "data.path", "output.path", "export.push_to", "report.path", "convert.config"]
    given_words = [f"{key}={typed(text, configuration.text_of(key))}" for key, text in zip(keys, texts, strict=False)]
    if words.is_file_of_prompts(texts[0]):
        given_words[0] = f"prompt=@{texts[0]}"
    weights = f"metrics.lpips.weights={typed(texts[7], Text(path=True))}"
    config, _ = received(*given_words, weights)
    wanted = [words.home(text) for text in texts]
    assert config.prompts() == [texts[0][1:] if texts[0].startswith("@@") else texts[0]]
    assert [config.image, config.data.path, config.output.path] == wanted[1:4]
    assert [config.export.push_to, config.report.path, config.convert.config] == [texts[4], *wanted[5:7]]
    assert config.metrics["lpips"]["weights"] == wanted[7]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=QUIET)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_any_text_is_shown_as_yaml_that_reads_back(idc, text, several):
    entries = ",".join(words.quoted(words.escaped(entry)) for entry in several)
    mark = configuration.text_of("prompt")
    result = idc("translate", "--cfg", "job", f"prompt={typed(text, mark)}", f"task.prompts=[{entries}]")
    assert result.code == 0, result.err
    shown = yaml.safe_load(result.out)
    assert shown["prompt"] == text
    assert shown["task"]["prompts"] == several


# A terminal without UTF-8 ---------------------------------------------------------------------------------------------


LOCALE = ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LC_CTYPE", "LANG")


@pytest.mark.parametrize("surroundings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LANG": "C"}])
def test_a_terminal_that_knows_only_ascii(surroundings):
    environment = {k: v for k, v in os.environ.items() if k not in LOCALE}
    commands = (["ls"], ["help"], ["translate", "--help"], ["nö"], ["translate", "--cfg", "job", "prompt=日本 → ${x}"])
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "idcompress.cli", *command],
            env=environment | surroundings,
            capture_output=True,
        )
        assert done.returncode == (2 if command == ["nö"] else 0), done.stderr
        assert done.stdout.isascii()
        assert done.stderr.isascii()
        assert b"Traceback" not in done.stderr
    assert yaml.safe_load(done.stdout)["prompt"] == "日本 → ${x}"


def test_stand_ins():
    from idcompress import console

    console.suit_terminal()
    assert "a → b… ┏━┓┃é".encode("ascii", "idcompress") == b"a -> b... +-+|\\xe9"


def test_a_prompt_file_error_is_of_this_program():
    with pytest.raises(IdcError, match="there is no file"):
        words.prompts("@nowhere")
    assert cli.commands()
