"""Conversion of original StableSR checkpoints of random weights: strictness, the text tower, safe loading, sizes."""

import copy
import json
import sys
import types

import open_clip
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

import idcompress
from idcompress.models.stablesr import (
    PUBLISHED_CONFIG,
    StableSRAutoencoderKL,
    StableSRPipeline,
    StableSRStructureEncoder,
    StableSRUNet2DConditionModel,
    convert_to_folder,
    from_original,
    num_structure_levels,
    prune_structure_encoder,
)
from idcompress.models.stablesr import convert as conversion
from scripts.full_size import original_names

TINY_CONFIG = {
    "unet": {
        **PUBLISHED_CONFIG["unet"],
        "model_channels": 32,
        "channel_mult": [1, 2],
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "context_dim": 64,
        "semb_channels": 32,
        "image_size": 32,
        "use_checkpoint": False,
    },
    "structcond": {
        **PUBLISHED_CONFIG["structcond"],
        "model_channels": 32,
        "out_channels": 32,
        "channel_mult": [1, 2],
        "attention_resolutions": [1],
        "num_res_blocks": 1,
        "dropout": 0,
    },
    "vae": {**PUBLISHED_CONFIG["vae"], "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "resolution": 64},
}


def original_weights(model, names):
    """A random state dict in original names with the shapes a model needs."""
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict().items()
    return original_names(
        {name: 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in state}, names
    )


@pytest.fixture(scope="module")
def models():
    return (
        StableSRUNet2DConditionModel(**conversion.unet_config(TINY_CONFIG)),
        StableSRStructureEncoder(**conversion.structure_encoder_config(TINY_CONFIG)),
        StableSRAutoencoderKL(**conversion.autoencoder_config(TINY_CONFIG)),
    )


@pytest.fixture
def checkpoints(models, tmp_path):
    """Write a pair of checkpoints after a change to their state dicts."""
    unet, encoder, vae = models
    cfw = original_weights(vae, conversion.autoencoder_names(vae))
    main = {
        f"model.diffusion_model.{key}": tensor
        for key, tensor in original_weights(unet, conversion.unet_names(unet)).items()
    }
    structure = original_weights(encoder, conversion.structure_encoder_names(encoder))
    main |= {f"structcond_stage_model.{key}": tensor for key, tensor in structure.items()}
    main |= {f"first_stage_model.{key}": tensor for key, tensor in cfw.items() if "fusion" not in key}
    main |= {key: torch.zeros(1000) for key in conversion.DROPPED_MAIN_KEYS}
    main["model_ema.decay"] = main["jpeger.table"] = torch.zeros(())
    cfw["loss.logvar"] = torch.zeros(())

    def write(change=lambda main, cfw: None, **extra):
        main_weights, cfw_weights = dict(main), dict(cfw)
        change(main_weights, cfw_weights)
        torch.save({"state_dict": main_weights, "epoch": 117, **extra}, tmp_path / "main.ckpt")
        torch.save({"state_dict": cfw_weights}, tmp_path / "cfw.ckpt")
        return tmp_path / "main.ckpt", tmp_path / "cfw.ckpt"

    return write


def test_every_weight_arrives(checkpoints, models):
    pipe = from_original(*checkpoints(), TINY_CONFIG)
    for ours, model in zip((pipe.unet, pipe.structure_encoder, pipe.vae), models, strict=True):
        assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
        assert not any(tensor.is_meta for tensor in ours.state_dict().values())
    assert pipe.unet.config.sample_size is None
    assert pipe.prompt_embedding is None
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_heads_are_split_one_by_one():
    """Rows of the fused projection are ordered head, then query/key/value, then channel."""
    fused = torch.arange(12).reshape(12, 1)  # 2 heads of 2 channels
    query, key, value = conversion._split_heads(fused, heads=2)
    assert query.flatten().tolist() == [0, 1, 6, 7]
    assert key.flatten().tolist() == [2, 3, 8, 9]
    assert value.flatten().tolist() == [4, 5, 10, 11]


@pytest.mark.parametrize(
    "where, key",
    [
        ("main", "bogus"),
        ("main", "model.diffusion_model.input_blocks.1.0.in_layers.9.weight"),
        ("main", "model.diffusion_model.input_blocks.99.0.op.weight"),
        ("main", "structcond_stage_model.middle_block.1.extra.weight"),
        ("main", "first_stage_model.encoder.bogus.weight"),
        ("main", "cond_stage_model.other"),
        ("cfw", "decoder.fusion_layer_0.encode_enc_1.conv1.weight"),
        ("cfw", "lossy.weight"),
    ],
)
def test_unknown_keys_are_named(checkpoints, where, key):
    paths = checkpoints(lambda main, cfw: (main if where == "main" else cfw).update({key: torch.zeros(1)}))
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        from_original(*paths, TINY_CONFIG)


@pytest.mark.parametrize(
    "key, name",
    [
        ("model.diffusion_model.middle_block.0.spade.mlp_beta.bias", "mid_block.resnets.0.spade.beta.bias"),
        ("structcond_stage_model.fea_tran.1.emb_layers.1.weight", "feature_blocks.1.time_emb_proj.weight"),
        ("decoder.fusion_layer_1.encode_enc_2.1.rdb3.conv5.bias", "fusion_blocks.1.dense.1.blocks.2.convs.4.bias"),
    ],
)
def test_missing_keys_are_named(checkpoints, key, name):
    paths = checkpoints(lambda main, cfw: (main.pop(key, None), cfw.pop(key, None)))
    with pytest.raises(ValueError, match=f"lacks: .*{name}"):
        from_original(*paths, TINY_CONFIG)


def test_wrong_shapes_are_named(checkpoints):
    key = "model.diffusion_model.out.2.weight"
    paths = checkpoints(lambda main, cfw: main.update({key: torch.zeros(4, 16, 3, 3)}))
    with pytest.raises(ValueError, match=r"out\.2\.weight has shape \(4, 16, 3, 3\), wanted \(4, 32, 3, 3\)"):
        from_original(*paths, TINY_CONFIG)


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("unet", "legacy", True, "unet.legacy must be False"),
        ("unet", "n_embed", 8, "unet.n_embed=8 is not an argument known here"),
        ("unet", "model_channels", None, "unet.model_channels is missing"),
        ("structcond", "use_new_attention_order", True, "structcond.use_new_attention_order must be False"),
        ("vae", "attn_resolutions", [16], r"vae.attn_resolutions must be \[\]"),
        ("unet", "channel_mult", 3, r"unet.channel_mult must be of the kind of \[1, 2, 4, 4\], got 3"),
        ("structcond", "num_res_blocks", "two", "structcond.num_res_blocks must be of the kind of 2, got 'two'"),
        ("structcond", "num_heads", "4", "structcond needs an integer num_heads"),
    ],
)
def test_config_arguments_without_equivalent_are_named(checkpoints, section, key, value, message):
    config = copy.deepcopy(TINY_CONFIG)
    config[section][key] = value
    with pytest.raises(ValueError, match=message):
        from_original(*checkpoints(), config)


def test_config_beyond_the_models(checkpoints, tmp_path):
    config = {**TINY_CONFIG, "image_size": 64, "scale_factor": 0.5, "linear_end": 0.01, "parameterization": "v"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (config, tmp_path / "config.json"):
        pipe = from_original(*checkpoints(), given)
        assert pipe.unet.config.sample_size == 16
        assert pipe.vae.config.scaling_factor == 0.5
        assert pipe.scheduler.config.beta_end == 0.01
        assert pipe.scheduler.config.prediction_type == "v_prediction"
    with pytest.raises(ValueError, match="parameterization must be eps or v, got 'x0'"):
        from_original(*checkpoints(), {**config, "parameterization": "x0"})


@pytest.mark.parametrize(
    "config, message",
    [
        ("unet: {}", "config.json is not JSON"),
        ("[1]", "no arguments under 'unet'"),
        ('{"unet": {}, "structcond": []}', "no arguments under 'structcond'"),
        (json.dumps({**TINY_CONFIG, "scale_factor": "x"}), "scale_factor must be a number, got 'x'"),
    ],
)
def test_a_config_file_of_another_kind_is_refused(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        from_original("main.ckpt", "cfw.ckpt", tmp_path / "config.json")


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_refused(checkpoints, capsys):
    paths = checkpoints(callbacks=Payload())
    with pytest.raises(ValueError, match=r"holds more than tensors and is not loaded \(.*print"):
        from_original(*paths, TINY_CONFIG)
    assert "executed" not in capsys.readouterr().out


def test_training_framework_leftovers_stay_inert(checkpoints, monkeypatch):
    """Lightning 1.4 keyed callback states by class and kept settings in its own dict; none of it is imported."""
    name = "pytorch_lightning.leftovers"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, module)
    settings = module.AttributeDict(lr=5e-5)
    paths = checkpoints(callbacks={module.ModelCheckpoint: {"best": 1.0}}, hyper_parameters=settings)
    monkeypatch.delitem(sys.modules, name)
    assert from_original(*paths, TINY_CONFIG).unet is not None


def test_a_file_without_state_dict_is_refused(tmp_path):
    torch.save({"weights": {"a": torch.zeros(1)}}, tmp_path / "main.ckpt")
    with pytest.raises(ValueError, match="has no state_dict of tensors, got weights"):
        from_original(tmp_path / "main.ckpt", tmp_path / "main.ckpt", TINY_CONFIG)
    torch.save([1, 2], tmp_path / "main.ckpt")
    with pytest.raises(ValueError, match="has no state_dict of tensors, got list"):
        from_original(tmp_path / "main.ckpt", tmp_path / "main.ckpt", TINY_CONFIG)


def test_a_file_that_was_cut_short_is_named(checkpoints):
    main, cfw = checkpoints()
    cfw.write_bytes(cfw.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"cfw.ckpt is cut short or no checkpoint \(.*\); fetch it again"):
        from_original(main, cfw, TINY_CONFIG)


@pytest.fixture(scope="module")
def text_tower():
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    clip = open_clip.model.CLIP(64, vision, text)
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return clip.eval()


def test_text_tower_gives_the_empty_prompt(checkpoints, text_tower, tmp_path):
    """Against OpenCLIP's own blocks: all but the last, then the final norm."""
    weights = {key: tensor for key, tensor in text_tower.state_dict().items() if not key.startswith("visual.")}
    paths = checkpoints(
        lambda main, cfw: main.update({f"cond_stage_model.model.{key}": tensor for key, tensor in weights.items()})
    )
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :2] = torch.tensor([49406, 49407])
    with torch.no_grad():
        hidden_states = text_tower.token_embedding(ids) + text_tower.positional_embedding
        for block in text_tower.transformer.resblocks[:-1]:
            hidden_states = block(hidden_states, attn_mask=text_tower.attn_mask)
        expected = text_tower.ln_final(hidden_states)

    pipe = from_original(*paths, TINY_CONFIG)
    torch.testing.assert_close(pipe.prompt_embedding(), expected, atol=1e-5, rtol=1e-5)

    convert_to_folder(*paths, tmp_path / "folder", TINY_CONFIG)
    loaded = StableSRPipeline.from_pretrained(tmp_path / "folder")
    assert torch.equal(loaded.prompt_embedding(), pipe.prompt_embedding())
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 2, "output_type": "pt", "upscale": 1}
    images = [p(image, generator=torch.Generator().manual_seed(0), **settings).images for p in (pipe, loaded)]
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


def test_strange_text_towers_are_refused(checkpoints, text_tower):
    prefix = "cond_stage_model.model."
    weights = {f"{prefix}{k}": v for k, v in text_tower.state_dict().items() if not k.startswith("visual.")}
    extra = checkpoints(lambda main, cfw: main.update(weights | {f"{prefix}visual.proj": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"visual\.proj"):
        from_original(*extra, TINY_CONFIG)
    del weights[f"{prefix}transformer.resblocks.0.ln_1.weight"]
    with pytest.raises(
        ValueError, match=r"lacks the key cond_stage_model\.model\.transformer\.resblocks\.0\.ln_1\.weight"
    ):
        from_original(*checkpoints(lambda main, cfw: main.update(weights)), TINY_CONFIG)


class EmptyPromptTokenizer:
    model_max_length = 77

    def __call__(self, prompt, **_settings):
        assert prompt == ""
        return types.SimpleNamespace(input_ids=torch.tensor([[49406, 49407] + 75 * [0]]))


def test_given_text_encoder_is_used_and_kept(checkpoints):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text_encoder, tokenizer = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **sizes)).eval(), EmptyPromptTokenizer()
    pipe = from_original(*checkpoints(), TINY_CONFIG, text_encoder=text_encoder, tokenizer=tokenizer)
    with torch.no_grad():
        expected = text_encoder(tokenizer("").input_ids).last_hidden_state
    assert torch.equal(pipe.prompt_embedding(), expected)
    assert pipe.text_encoder is text_encoder
    pipe.prompt_embedding = None
    assert torch.equal(pipe.encode_prompt(2), expected.expand(2, -1, -1))


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        return (
            StableSRUNet2DConditionModel(**conversion.unet_config(PUBLISHED_CONFIG)),
            StableSRStructureEncoder(**conversion.structure_encoder_config(PUBLISHED_CONFIG)),
            StableSRAutoencoderKL(**conversion.autoencoder_config(PUBLISHED_CONFIG)),
        )


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_full_size_counts(full_size):
    assert [count(model) for model in full_size] == [918_930_884, 52_494_080, 128_047_591]
    unet, encoder, vae = full_size
    assert len(unet.state_dict()) == 862
    assert count(vae.fusion_blocks) == 44_393_728
    assert sum(p.numel() for name, p in unet.named_parameters() if ".spade." in name) == 53_020_160
    # the published defaults of the constructors are those of the configuration
    with torch.device("meta"):
        assert count(StableSRStructureEncoder()) == count(encoder)


@pytest.mark.parametrize(
    "depth, everything, papers, encoder_part",
    [
        (1, 9_200_644, 7_150_084, 6_180_352),
        (3, 36_474_884, 34_424_324, 6_180_352),
        (4, 63_027_524, 60_976_964, 11_628_544),
        (6, 152_440_644, 150_390_084, 11_628_544),
        (7, 250_511_684, 248_461_124, 25_931_520),
        (8, 401_592_644, 399_542_084, 25_931_520),
        (9, 559_227_204, 557_176_644, 25_931_520),
        (10, 641_135_044, 639_084_484, 52_494_080),
        (12, 814_738_884, 812_688_324, 52_494_080),
        (13, 918_930_884, 916_880_324, 52_494_080),
    ],
)
def test_full_size_counts_by_depth(full_size, depth, everything, papers, encoder_part):
    """Both ways of counting: all that is kept, and the paper's, which leaves the U-Net's time embedding out."""
    unet, encoder, _ = full_size
    pruned = idcompress.depth_skip(unet, depth)
    assert count(pruned) == everything
    assert count(pruned) - count(pruned.time_embedding) == papers
    assert set(pruned.state_dict()) <= set(unet.state_dict())
    if depth == 13:
        assert round((papers + count(encoder)) / 1e4) / 100 == 969.37  # the paper's U-Net+
    small = prune_structure_encoder(encoder, num_structure_levels(pruned))
    assert count(small) == encoder_part
    assert set(small.state_dict()) <= set(encoder.state_dict())
