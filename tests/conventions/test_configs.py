"""One file, one YAML, one name; every YAML composes; light commands stay light; nothing is unpickled."""

import ast
import dataclasses
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from idcompress import cli, config, registry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "idcompress"
CONF = config.conf_dir()
# Registered kind -> configuration group.
KINDS = {"task": "task", "prune": "prune", "timesteps": "timesteps", "data": "data", "study": "study"}
COMMANDS = registry.names("command")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def stems(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def hydra():
    config.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides):
    return config.to_config(compose("config", overrides=list(overrides)))


# names


@pytest.mark.parametrize("kind", KINDS)
def test_every_entry_has_a_yaml_of_its_name(kind):
    assert stems(KINDS[kind]) == registry.names(kind)
    for stem in stems(KINDS[kind]):
        text = (CONF / KINDS[kind] / f"{stem}.yaml").read_text()
        assert yaml.safe_load(text)["name"] == stem


def test_models_are_called_as_their_files():
    for stem in stems("model"):
        assert yaml.safe_load((CONF / "model" / f"{stem}.yaml").read_text())["name"] == stem


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_yaml_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    if "help" in path.parts:
        assert yaml.safe_load(text)["header"].startswith(f"idc {path.stem.replace('_', '-')}")
        return
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    assert any(not line.startswith("# @package") for line in comments)


def test_every_task_has_settings_for_every_model():
    for task, model in itertools.product(stems("task"), stems("model")):
        made = composed(f"task={task}", f"model={model}")
        assert made.sampler == ("ancestral" if (task, model) == ("stablesr", "official") else "ddim")
        settings = yaml.safe_load((CONF / "task" / f"{task}.yaml").read_text())["models"][model]
        assert {name.removesuffix("?") for name in settings["metrics"]} <= set(registry.names("metric"))
        assert {t["metric"] for t in settings["thresholds"]} <= set(registry.names("metric"))
        assert all(set(t) == {"metric", "bound", "direction"} for t in settings["thresholds"])


@pytest.mark.parametrize(("kind", "name"), [(kind, n) for kind in registry._FOLDERS for n in registry.names(kind)])
def test_every_entry_has_a_line_to_be_listed_by(kind, name):
    line = registry.summary(kind, name)
    assert 15 <= len(line) < 116
    assert line[0].isupper()
    assert not line.lower().startswith(("todo", "fixme"))


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in ("timesteps", "prune", "study") for n in registry.names(k)])
def test_every_method_names_its_source(kind, name):
    tree = ast.parse((PACKAGE / registry._FOLDERS[kind] / f"{name}.py").read_text(encoding="utf-8"))
    assigned = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    source = ast.literal_eval(assigned["SOURCE"])
    assert source or (kind, name) == ("prune", "none")


# composition


@pytest.mark.parametrize("experiment", stems("experiment"))
@pytest.mark.parametrize("model", stems("model"))
@pytest.mark.parametrize("task", stems("task"))
def test_tasks_models_and_experiments_compose(task, model, experiment):
    made = composed(f"task={task}", f"model={model}", f"experiment={experiment}")
    assert (made.task.name, made.model.name) == (task, model)
    assert made.depth_search.thresholds
    assert made.guidance_scale is None or made.guidance_scale > 0


@pytest.mark.parametrize("prune", stems("prune"))
@pytest.mark.parametrize("strategy", stems("timesteps"))
def test_methods_compose_and_their_parameters_fit(strategy, prune):
    made = composed(f"timesteps={strategy}", f"prune={prune}")
    assert made.prune["name"] == prune
    parameters = {name: value for name, value in made.timesteps.items() if name != "name"}
    function = registry.load("timesteps", made.timesteps["name"]).timesteps
    registry.bind(function, parameters, "timesteps")
    keyword_only = {p.arg: d for p, d in zip(*signature(function), strict=True)}
    assert {name: ast.literal_eval(default) for name, default in keyword_only.items()} == parameters


@pytest.mark.parametrize("name", stems("data"))
def test_options_of_data_sets_fit(name):
    options = composed(f"data={name}").data.options
    load = registry.load("data", name).load
    assert registry.bind(load, options, "data.options") == options
    arguments, defaults = signature(load)
    assert {a.arg: ast.literal_eval(d) for a, d in zip(arguments, defaults, strict=True)} == options


@pytest.mark.parametrize("name", [stem for stem in stems("compare") if stem != "none"])
def test_rows_of_comparisons_fit_every_task(name):
    for task in stems("task"):
        made = composed(f"task={task}", f"compare={name}")
        assert made.compare["name"] == name
        if set(made.compare["guidance"] or ()) <= set(made.guidance()):
            registry.load("command", "compare").check(made)


@pytest.mark.parametrize("name", stems("study"))
def test_parameters_of_studies_fit(name):
    """Lists have their values in the YAML alone."""
    parameters = {key: value for key, value in composed(f"study={name}").study.items() if key != "name"}
    run = registry.load("study", name).run
    registry.bind(run, parameters, "study")
    arguments, defaults = signature(run)
    assert {a.arg for a in arguments} == parameters.keys()
    written = {a.arg: ast.literal_eval(d) for a, d in zip(arguments, defaults, strict=True) if d is not None}
    assert written == {key: parameters[key] for key in written}


def signature(function):
    """A function's keyword-only parameters and their defaults, from its source."""
    import inspect
    import textwrap

    arguments = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].args
    return arguments.kwonlyargs, arguments.kw_defaults


# keys


def config_lines():
    """(dotted key, whether it is explained, whether it opens a section) of conf/config.yaml.

    A key is explained by a comment behind it, above it, or behind the section that it is in.
    """
    lines = (CONF / "config.yaml").read_text(encoding="utf-8").splitlines()
    path: list[str] = []
    explained: list[bool] = []
    for before, line in itertools.pairwise(lines):
        match = re.match(r"( *)(\w+):(.*)$", line)
        if match:
            depth = len(match[1]) // 2
            own = " # " in line or before.lstrip().startswith("#")
            path, explained = [*path[:depth], match[2]], [*explained[:depth], own]
            yield ".".join(path), any(explained), not match[3].partition(" #")[0].strip()


def tree():
    """conf/config.yaml as it is written."""
    return OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)


def own_keys():
    return [row for row in config_lines() if row[0].partition(".")[0] not in ("defaults", "hydra")]


def schema_keys(cls=config.Config, prefix=""):
    """Dotted keys of the dataclasses; a free dictionary is one key."""
    for field in dataclasses.fields(cls):
        section = getattr(config, str(field.type).strip("'"), None)
        if dataclasses.is_dataclass(section):
            yield from schema_keys(section, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_the_tree_and_its_schema_have_the_same_keys():
    chosen = ("task", "model", "prune", "timesteps", "loss", "study", "compare")  # come from files of their own
    schema = {key for key in schema_keys() if key.partition(".")[0] not in chosen} - {"data.name", "data.options"}
    free = {field.name for field in dataclasses.fields(config.Config) if str(field.type).startswith("Dict")}
    leaves = {key for key, _, section in own_keys() if not section and key.partition(".")[0] not in free}
    assert leaves == schema - free
    assert free - set(chosen) <= {key for key, _, _ in own_keys()}


@pytest.mark.parametrize(
    "explained", [pytest.param(explained, id=key) for key, explained, section in own_keys() if not section]
)
def test_every_key_is_explained(explained):
    assert explained


@pytest.mark.parametrize("name", tree()["metrics"])
def test_parameters_of_metrics_fit(name):
    parameters = tree()["metrics"][name]
    metric = registry.load("metric", name, "metrics").Metric
    assert registry.bind(metric, parameters, f"metrics.{name}") == parameters


def test_the_defaults_of_tree_and_schema_agree():
    """Where a value is plain in both places; stages are tested with the dataclasses alone."""
    written = tree()
    for field in dataclasses.fields(config.Config):
        if field.default is not dataclasses.MISSING and "${" not in str(written[field.name]):
            assert written[field.name] == field.default, field.name
        if dataclasses.is_dataclass(field.default_factory):
            for name, value in dataclasses.asdict(field.default_factory()).items():
                key = f"{field.name}.{name}"
                # From files of their own, or an object of a library.
                if field.name == "loss" or key in ("data.name", "data.options", "finetune.optimizer"):
                    continue
                if "${" not in str(written[field.name][name]):
                    assert written[field.name][name] == value, f"{field.name}.{name}"


# help


def help_text(command):
    return yaml.safe_load((CONF / "hydra" / "help" / f"{command}.yaml").read_text())["template"]


def examples(command):
    block = help_text(command).partition("Examples:")[2].partition("Groups:")[0]
    return [line.strip() for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("tsopt", registry.names("timesteps")),
        ("tsopt", registry.names("sampler")),
        ("compare", [name for name in stems("compare") if name != "none"]),
    ],
    ids=["strategies", "samplers", "comparisons"],
)
def test_help_names_all_that_there_is(command, names):
    words = set(re.findall(r"\w+", help_text(command)))
    assert set(names) <= words


def test_help_says_what_a_command_takes_by_itself():
    """`idc compress` has defaults of its own, `idc compare` a comparison."""
    chain = compose("config", overrides=["command=compress"])
    assert f"[{chain.timesteps.name}, {chain.sampler};" in help_text("compress")
    assert f"[{compose('config', overrides=['command=compare']).compare.name}]" in help_text("compare")


def test_every_command_has_a_help_text():
    assert stems("hydra/help") == COMMANDS


@pytest.mark.parametrize(("command", "line"), [(c, line) for c in COMMANDS for line in examples(c)])
def test_examples_compose(command, line):
    program, word, *arguments = shlex.split(line)
    assert program == "idc"
    assert cli.ALIASES.get(word, word) == command.replace("_", "-")
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")])
    assert all(sweep or not override.is_sweep_override() for override in overrides)
    choices = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in overrides
    ]
    for job in itertools.product(*choices):
        composed(*job)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_three_examples_and_names_only_real_keys(command):
    assert len(examples(command)) >= 3
    keys = {*config.known_keys(compose("config", overrides=["compare=equal_cost"])), *groups()}
    block = help_text(command).partition("Keys")[2].partition("Examples:")[0]
    named = set(re.findall(r"(?<![\w.])[a-z_]+(?:\.[a-z_]+)+", block))
    named = {word for word in named if Path(word).suffix not in (".json", ".jsonl", ".html", ".md", ".png", ".jpg")}
    first_words = {
        line.split()[0].rstrip(",") for line in block.splitlines()[1:] if re.match(r" {2,}[a-z_.]+ {2,}", line)
    }
    assert named | first_words <= keys


def groups():
    return {path.name for path in CONF.iterdir() if path.is_dir()}


# weight of the light commands


def modules_after(code):
    """Names of all modules that a fresh interpreter holds after running some code."""
    program = f"import json, sys\ntry:\n    {code}\nfinally:\n    sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


HEAVY = {"torch", "diffusers", "transformers", "lightning", "cv2", "sklearn", "skimage", "matplotlib"}


def test_import_alone_is_light():
    modules, _ = modules_after("import idcompress; assert idcompress.__version__")
    assert not modules & {*HEAVY, "numpy", "hydra", "omegaconf"}


def test_usage_is_light():
    modules, output = modules_after("from idcompress.cli import main; main(['--help'])")
    assert not modules & {*HEAVY, "numpy", "hydra", "omegaconf"}
    assert all(f"  {command.replace('_', '-')}" in output for command in COMMANDS)


def test_showing_the_configuration_loads_no_torch():
    modules, output = modules_after("from idcompress.cli import main; main(['depth-search', '--cfg', 'job'])")
    assert not modules & HEAVY
    assert yaml.safe_load(output)["task"]["name"] == "ip2p"


# nothing executes what it reads

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_is_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").partition(".")[0] not in UNSAFE_MODULES, node.lineno
        if isinstance(node, ast.Import):
            assert not any(a.asname and a.name in UNSAFE_MODULES for a in node.names), node.lineno
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in UNSAFE_MODULES:
            assert node.attr == "UnpicklingError", f"line {node.lineno}: {ast.unparse(node)}"  # what loading may raise
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in UNSAFE_CALLS, node.lineno
        assert keywords.get("allow_pickle", "False") == "False", node.lineno
        assert "trust_remote_code" not in keywords, node.lineno
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
        if name.endswith(".from_pretrained") and path.is_relative_to(PACKAGE / "adapters"):
            assert keywords.get("use_safetensors", "True") == "True", node.lineno
