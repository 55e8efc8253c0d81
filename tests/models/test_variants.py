"""Pipeline folders as they lie on disks: whole ones load, whatever their form, and others end in one line."""

import json
import os
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from idcompress.adapters.pipeline import encode_prompts, fixed_scheduler, native_size
from idcompress.core.plan import Plan
from idcompress.errors import IdcError
from idcompress.schedulers import FixedTimestepsScheduler
from idcompress.sources.load import load_pipeline, load_source

NETWORKS = ("unet", "vae", "text_encoder")


def load(folder, task="ip2p", **settings):
    return load_source(task, {"name": "random", "path": str(folder)}, **settings).pipeline


@pytest.fixture
def copy(random_model, tmp_path):
    def made(task="ip2p"):
        return shutil.copytree(random_model(task), tmp_path / task)

    return made


@pytest.fixture
def said(monkeypatch):
    """Warnings of the loading and of the prompts."""
    lines = []
    for module in ("idcompress.sources.components", "idcompress.adapters.pipeline"):
        monkeypatch.setattr(f"{module}.warn", lines.append)
    return lines


def edit(path, **fields):
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_weights(component, change):
    (path,) = component.glob("*.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def refused(folder, words, task="ip2p"):
    with pytest.raises(IdcError, match=words) as error:
        load(folder, task)
    assert "\n" not in str(error.value)


# every weight is there


COMPONENTS = [
    *(("ip2p", name) for name in NETWORKS),
    ("controlnet", "controlnet"),
    *(("stablesr", name) for name in ("unet", "vae", "structure_encoder")),
]


@pytest.mark.parametrize(("task", "component"), COMPONENTS)
def test_a_missing_weight_is_named_and_never_made_up(copy, task, component):
    folder, gone = copy(task), []

    def take(weights):
        gone.append(sorted(weights)[-1])
        del weights[gone[0]]

    edit_weights(folder / component, take)
    refused(folder, rf"{component} lacks weights of the \w+ that its config\.json describes: .*{gone[0]}", task)


@pytest.mark.parametrize("component", NETWORKS)
def test_a_weight_without_a_place_is_named(copy, component):
    folder = copy()
    edit_weights(folder / component, lambda w: w.update({f"{sorted(w)[0]}_more": torch.zeros(2)}))
    refused(folder, rf"{component} holds weights that have no place .*_more")


@pytest.mark.parametrize("component", NETWORKS)
def test_a_weight_of_another_shape_is_named(copy, component):
    folder, names = copy(), []
    edit_weights(folder / component, lambda w: (names.append(min(w)), w.update({min(w): torch.zeros(3)})))
    refused(folder, rf"{component} .*{names[0]}")


def test_the_other_half_of_clip_may_lie_in_the_text_encoders_file(copy):
    folder = copy()
    extra = {"vision_model.embeddings.class_embedding": torch.zeros(2), "logit_scale": torch.zeros(())}
    edit_weights(folder / "text_encoder", lambda w: w.update(extra))
    load(folder)


@pytest.mark.parametrize("component", NETWORKS)
def test_a_configuration_without_fields_does_not_load(copy, component):
    folder = copy()
    (folder / component / "config.json").write_text("{}")
    refused(folder, component)


# variants


def as_fp16(folder, names=NETWORKS, *, keep=False, **options):
    pipeline = load(folder, dtype="float16")
    for name in names:
        for path in () if keep else (folder / name).glob("*.safetensors"):
            path.unlink()
        getattr(pipeline, name).save_pretrained(folder / name, variant="fp16", **options)
    return folder


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "100KB"}], ids=["whole", "sharded"])
@pytest.mark.parametrize("names", [NETWORKS, ("unet",)], ids=["all", "some"])
def test_half_precision_files_are_taken_where_there_are_no_others(copy, random_model, names, options):
    ours, plain = load(as_fp16(copy(), names, **options)), load(random_model("ip2p"))
    for name in NETWORKS:
        wanted = getattr(plain, name).state_dict()
        for key, value in getattr(ours, name).state_dict().items():
            assert value.dtype == wanted[key].dtype
            assert torch.equal(value, wanted[key].half().to(value.dtype) if name in names else wanted[key])


def test_plain_files_go_before_a_variant(copy, random_model):
    folder = as_fp16(copy(), ("unet",), keep=True)
    os.truncate(folder / "unet/diffusion_pytorch_model.fp16.safetensors", 500)  # of no matter
    ours, plain = (load(place).unet.state_dict() for place in (folder, random_model("ip2p")))
    assert all(torch.equal(value, plain[key]) for key, value in ours.items())


def test_a_change_of_half_precision_files_changes_the_digest(copy):
    folder = as_fp16(copy())
    before = load_source("ip2p", {"name": "random", "path": str(folder)}).digest
    edit_weights(folder / "unet", lambda w: w.update({"conv_in.bias": w["conv_in.bias"] + 1}))
    assert load_source("ip2p", {"name": "random", "path": str(folder)}).digest != before


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("*-00002-of-*.safetensors", "is incomplete: .*-00002-of-"),
        ("*.index.*", "shards of weights without their index"),
    ],
)
def test_a_lost_shard_is_named(copy, gone, words):
    folder = as_fp16(copy(), ("unet",), max_shard_size="100KB")
    for path in (folder / "unet").glob(gone):
        path.unlink()
    refused(folder, words)


# components that may be missing, and those that may not


def test_what_is_never_used_need_not_be_there(copy):
    folder = copy()
    edit(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    pipeline = load(folder)
    assert pipeline.safety_checker is pipeline.feature_extractor is pipeline.image_encoder is None


@pytest.mark.parametrize(
    "entry", [..., [None, None], "UNet", ["diffusers"], ["os", "system"], ["diffusers", "Unknown"]]
)
@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_what_is_needed_must_be_named_as_diffusers_does(copy, name, entry):
    folder = copy()
    edit(folder / "model_index.json", **{name: entry})
    refused(folder, name)


def test_a_network_of_another_class_is_refused(copy):
    folder = copy()
    diffusers.AutoencoderTiny().save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    refused(folder, r"vae is a AutoencoderTiny, and task=ip2p wants a AutoencoderKL")


# what fits the task


@pytest.mark.parametrize(
    ("task", "channels", "words"),
    [
        ("ip2p", 4, r"4 input channels, and task=ip2p wants 8 .*; it would fit task=controlnet"),
        ("controlnet", 8, r"8 input channels, .* wants 4 .*; it would fit task=high_frequency or task=ip2p"),
        ("ip2p", 9, r"9 input channels, .*; it would fit task=inpaint"),
        ("inpaint", 4, r"4 input channels, .* wants 9 \(.* 2 times, and 1 of a mask\); it would fit task=controlnet"),
        ("ip2p", 10, r"10 input channels, .*; it fits no task"),
    ],
)
def test_other_input_channels_are_told(copy, task, channels, words):
    folder = copy(task)
    edit(folder / "unet/config.json", in_channels=channels)
    edit_weights(folder / "unet", lambda w: w.update({"conv_in.weight": torch.zeros(16, channels, 3, 3)}))
    refused(folder, words, task)


@pytest.mark.parametrize(("task", "side"), [("ip2p", 32), ("stablesr", 64)])
def test_a_rectangular_size_counts_by_its_shorter_side(copy, said, task, side):
    folder = copy(task)
    edit(folder / "unet/config.json", sample_size=[12, 8])
    assert native_size(load(folder, task)) == side
    assert said == ["the U-Net's sample_size is [12, 8]: pictures are worked on at the shorter side, 8"]


@pytest.mark.parametrize("size", [0, -8, "8", 8.5, [8, 8, 8], []])
def test_a_size_that_is_none_is_refused(copy, size):
    folder = copy()
    edit(folder / "unet/config.json", sample_size=size)
    refused(folder, "sample_size must be a side in latents")


# schedulers


def scheduler(folder, name, **fields):
    getattr(diffusers, name)().save_pretrained(folder / "scheduler")
    edit(folder / "scheduler/scheduler_config.json", **fields)
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    return folder


def test_a_scheduler_of_no_known_process_is_refused(copy):
    refused(scheduler(copy(), "EDMEulerScheduler"), "EDMEulerScheduler has neither a noise schedule nor a flow")


def test_a_prediction_type_that_is_none_is_refused(copy):
    refused(scheduler(copy(), "DDIMScheduler", prediction_type="v-pred"), "prediction_type must be .* got 'v-pred'")


def test_a_schedule_that_is_not_told_is_said(copy, said):
    load(scheduler(copy(), "DDIMScheduler", beta_schedule=..., beta_end=...))
    assert len(said) == 1 and "says nothing of beta_end, beta_schedule" in said[0]


def test_a_flow_is_never_sampled_as_something_else(copy):
    pipeline = load(scheduler(copy(), "FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(IdcError, match="FlowMatchEulerDiscreteScheduler is that of a flow"):
        fixed_scheduler(pipeline, Plan.over([999, 500]))


@pytest.mark.parametrize("task", ["ip2p", "controlnet", "stablesr"])
def test_a_flow_is_translated_or_refused_in_one_line(copy, idc, task):
    from PIL import Image

    folder = scheduler(copy(task), "FlowMatchEulerDiscreteScheduler")
    Image.new("RGB", (24, 24)).save("a.png")
    result = idc(
        "translate", f"task={task}", f"model.path={folder}", "image=a.png", "recipe=none", "num_inference_steps=2"
    )
    assert result.code == 0 or (result.code == 2 and result.err.count("\n") == 1), result.err


def test_a_strategy_that_knows_no_flows_refuses_one_before_anything_is_sampled(copy, idc, monkeypatch):
    def sampled(*_, **__):
        raise AssertionError("something was sampled")

    monkeypatch.setattr("idcompress.bench.bench.Bench.images", sampled)
    monkeypatch.setattr("idcompress.bench.bench.Bench.references", sampled)
    folder = scheduler(copy(), "FlowMatchEulerDiscreteScheduler")
    result = idc("tsopt", "task=ip2p", f"model.path={folder}", "timesteps=xue", "recipe=none", "tsopt.num_samples=2")
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "timesteps=xue wants a variance-preserving noise schedule" in result.err


@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("length", [1000, 100, 7])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_as_many_steps_as_the_schedule_is_long_stay_in_it(length, offset, spacing):
    made = FixedTimestepsScheduler(num_train_timesteps=length, steps_offset=offset, timestep_spacing=spacing)
    for steps in range(1, length + 1) if length < 1000 else (1, 2, 499, 999, 1000):
        made.set_timesteps(steps)
        assert len(made.timesteps) == steps
        assert int(made.timesteps.min()) >= 0 and int(made.timesteps.max()) < length
        assert (made.timesteps.diff() <= 0).all()


# tokenizers and prompts


def cut_vocabulary(folder):
    file = folder / "tokenizer/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"] |= {"vocab": {}, "merges": []}
    file.write_text(json.dumps(tokenizer))


BREAK = {
    "an empty folder": lambda folder: [path.unlink() for path in (folder / "tokenizer").iterdir()],
    "no vocabulary": cut_vocabulary,
    "no JSON": lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{"),
    "no tokenizer": lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{}"),
    "no file": lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
    "no object": lambda folder: (folder / "tokenizer/tokenizer_config.json").write_text("[]"),
    "no folder": lambda folder: shutil.rmtree(folder / "tokenizer"),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_tokenizer_is_refused(copy, how):
    folder = copy()
    BREAK[how](folder)
    refused(folder, "tokenizer")


def test_a_tokenizer_that_does_not_know_its_length_gets_the_encoders(copy):
    folder = copy()
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=...)
    pipeline = load(folder)
    length = pipeline.text_encoder.config.max_position_embeddings
    assert encode_prompts(pipeline, ["make it blue"]).shape[1] == length


def test_the_end_of_a_long_prompt_is_told_once(random_model, said):
    pipeline = load(random_model("ip2p"))
    prompt = "Make the sky darker, and the grass GREENER, and then turn it all into a sketch!"
    for _ in range(2):
        encode_prompts(pipeline, ["make it blue", prompt, prompt])
    (line,) = said
    rest = line.partition("dropped: '")[2].partition("'; ")[0]
    assert rest and prompt.endswith(rest)
    length = pipeline.tokenizer.model_max_length
    kept = pipeline.tokenizer(prompt[: -len(rest)]).input_ids
    assert len(kept) == length and f"the text encoder reads {length}" in line
    assert torch.equal(encode_prompts(pipeline, [prompt]), encode_prompts(pipeline, [prompt[: -len(rest)]]))


def test_many_long_prompts_are_told_no_more_than_a_few_times(random_model, said):
    pipeline = load(random_model("ip2p"))
    for number in range(30):
        encode_prompts(pipeline, [f"make it {number} times as blue " * 9])
    assert len(said) == 11 and "without a line for each" in said[-1]


def test_an_exported_folder_with_a_lost_weight_is_refused_by_the_interface_too(copy):
    folder = copy()
    edit_weights(folder / "unet", lambda w: w.pop("conv_out.weight"))
    with pytest.raises(IdcError, match=r"conv_out\.weight"):
        load_pipeline(folder)
