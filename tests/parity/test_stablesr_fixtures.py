"""StableSR against numbers of the published classes: every tensor of the fixtures, through converted checkpoints."""

import json

import pytest
import synthetic_weights
import torch
from safetensors.torch import load_file

import idcompress
from idcompress.core.ddim import ddim_step
from idcompress.core.process import CLEAN, Level, predict
from idcompress.core.tiles import blend_tiles, gaussian_weights
from idcompress.models.stablesr import (
    adain_color_fix,
    from_original,
    num_structure_levels,
    prune_structure_encoder,
    respaced_timesteps,
    wavelet_color_fix,
)
from idcompress.models.stablesr.color_fix import wavelet_low_band
from idcompress.schedulers import process_of

TOLERANCE = 2e-5  # of the tensor's maximum; the smallest structural mistake tried is 100 times that
EPSPROBE_TOLERANCE = 1e-4
TIMESTEPS = (0, 1, 250, 500, 999)


def close(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
    assert error <= tolerance, f"relative error {error:.1e}"


class Official:
    """The converted pipeline, its configuration, and the fixture files as attributes; an absent one skips its test."""

    def __init__(self, pipe, config, find):
        self.pipe, self.config, self._find = pipe, config, find

    def __getattr__(self, name):
        tensors = load_file(self._find(f"stablesr/{name}.safetensors"))
        setattr(self, name, tensors)
        return tensors


@pytest.fixture(scope="module")
def official(parity_fact, tmp_path_factory) -> Official:
    config = json.loads(parity_fact("stablesr/config.json").read_text())
    index, checkpoints = parity_fact("stablesr/state_dict_index.json"), tmp_path_factory.mktemp("checkpoints")
    for which, expected in config["weights_sha256"].items():
        assert synthetic_weights.save_checkpoint(index, which, checkpoints / f"{which}.ckpt") == expected
    pipe = from_original(checkpoints / "main.ckpt", checkpoints / "cfw.ckpt", config)
    for model in (pipe.unet, pipe.structure_encoder, pipe.vae):
        model.requires_grad_(False)
    return Official(pipe, config, parity_fact)


def structure(official, latents, timestep):
    return official.pipe.structure_encoder(latents, timestep)


def run_unet(official, sample, latents, context, timestep, unet=None):
    features = structure(official, latents, timestep)
    return (unet or official.pipe.unet)(sample, timestep, context, structure_features=features).sample


def unet_inputs(official):
    f = official.unet
    return f["in.x"], f["in.struct_latent"], f["in.context"]


def test_parameter_counts(official):
    counts = official.config["params"]
    for name, model in (
        ("unet", official.pipe.unet),
        ("structcond", official.pipe.structure_encoder),
        ("cfw_vae", official.pipe.vae),
    ):
        assert sum(p.numel() for p in model.parameters()) == counts[name]


@pytest.mark.parametrize("timestep", [*TIMESTEPS, "mixed"])
def test_structure_encoder(official, timestep):
    f = official.structcond
    prefix = "mixed" if timestep == "mixed" else f"t{timestep}"
    features = structure(official, f["in.latent"], f["mixed.t"] if timestep == "mixed" else timestep)
    assert list(features) == [16, 8, 4, 2]
    for width, feature in features.items():
        close(feature, f[f"{prefix}.out.{width}"])


@pytest.mark.parametrize("timestep", [*TIMESTEPS, "mixed"])
def test_unet(official, timestep):
    f = official.unet
    sample, latents, context = unet_inputs(official)
    t = f["mixed.t"] if timestep == "mixed" else timestep
    close(run_unet(official, sample, latents, context, t), f["mixed.out" if timestep == "mixed" else f"t{t}.out"])


def test_unet_follows_the_structure_latents(official):
    f = official.unet
    close(run_unet(official, f["in.x"], f["alt.in.struct_latent"], f["in.context"], 500), f["alt.out"])


def test_unet_inside(official):
    """Every block's output and one SPADE layer, in the original block order."""
    f, unet, seen = official.unet_debug, official.pipe.unet, {}

    def keep(name, module, pick=lambda output: output):
        return module.register_forward_hook(lambda _m, inputs, output: seen.update({name: pick(output)}))

    handles = [keep("time_embed", unet.time_embedding), keep("input_blocks.0", unet.conv_in)]
    spade = unet.down_blocks[0].resnets[0].spade
    handles.append(keep("input_blocks.1.0.spade.out", spade))
    handles.append(
        spade.register_forward_pre_hook(lambda _m, inputs: seen.update({"input_blocks.1.0.spade.in": inputs[0]}))
    )
    index = 1
    for block in unet.down_blocks:
        for layer in getattr(block, "attentions", block.resnets):
            handles.append(keep(f"input_blocks.{index}", layer, lambda o: o[0] if isinstance(o, tuple) else o))
            index += 1
        for sampler in block.downsamplers or ():
            handles.append(keep(f"input_blocks.{index}", sampler))
            index += 1
    handles.append(keep("middle_block", unet.mid_block))
    index = 0
    for block in unet.up_blocks:
        layers = list(getattr(block, "attentions", block.resnets))
        for layer in layers:
            handles.append(keep(f"output_blocks.{index}", layer, lambda o: o[0] if isinstance(o, tuple) else o))
            index += 1
        for sampler in block.upsamplers or ():
            handles.append(keep(f"output_blocks.{index - 1}", sampler))
    run_unet(official, *unet_inputs(official), 500)
    for handle in handles:
        handle.remove()
    assert set(seen) == set(f)
    for name, ours in seen.items():
        close(ours[:1], f[name])


@pytest.mark.parametrize("depth", range(1, 14))
def test_depth_skip(official, depth):
    """Every depth, with the full structure encoder and with the part of it that the depth still reads."""
    sample, latents, context = unet_inputs(official)
    unet = idcompress.depth_skip(official.pipe.unet, depth)
    expected = official.depthskip[f"D{depth}.out"]
    close(run_unet(official, sample, latents, context, 500, unet), expected)
    encoder = prune_structure_encoder(official.pipe.structure_encoder, num_structure_levels(unet))
    features = encoder(latents, 500)
    assert len(features) == min((depth + 2) // 3, 4)
    close(unet(sample, 500, context, structure_features=features).sample, expected)


def test_depth_skip_per_sample_timesteps(official):
    sample, latents, context = unet_inputs(official)
    unet = idcompress.depth_skip(official.pipe.unet, 5)
    output = run_unet(official, sample, latents, context, official.unet["mixed.t"], unet)
    close(output, official.depthskip["D5.mixed.out"])


def test_autoencoder(official):
    f, vae = official.cfw, official.pipe.vae
    latent_dist, features = vae.encode(f["in.image"], return_features=True)
    close(latent_dist.parameters, f["enc.moments"])
    close(latent_dist.mean, f["enc.mean"])
    close(latent_dist.std, f["enc.std"])
    close(features[0], f["enc.fea0"])
    close(features[1], f["enc.fea1"])
    close(vae.encode(f["in.image"]).latent_dist.parameters, f["enc.moments"])
    for weight in (0.0, 0.5, 1.0):
        close(vae.decode(f["in.z"], features=features, fidelity_weight=weight).sample, f[f"dec.w{weight}"])
    close(vae.decode(f["in.z"]).sample, f["kl.dec"])


def test_color_fixes(official):
    f = official.colorfix
    content, style = f["in.content"], f["in.style"]
    close(adain_color_fix(content, style), f["adain"])
    close(wavelet_color_fix(content, style), f["wavelet"])
    close(wavelet_low_band(content), f["wavelet.content_low"])
    close(content - wavelet_low_band(content), f["wavelet.content_high"])


def test_respaced_timesteps(official):
    for number, timesteps in official.config["timesteps"].items():
        assert respaced_timesteps(int(number)) == timesteps


@pytest.mark.parametrize("number", [200, 50, 20, 10, 4])
def test_schedule(official, number):
    """The respaced schedule's tables follow from alphas_cumprod at the kept timesteps, and eta 1 steps by them."""
    f = official.schedule
    alphas_cumprod = official.pipe.scheduler.alphas_cumprod
    close(alphas_cumprod, f["base.alphas_cumprod"])
    close(official.pipe.scheduler.betas, f["base.betas"])
    levels = alphas_cumprod[respaced_timesteps(number)].double()
    close(levels, f[f"s{number}.alphas_cumprod"])
    previous = torch.cat([torch.ones(1, dtype=torch.float64), levels[:-1]])
    close(previous, f[f"s{number}.alphas_cumprod_prev"])
    close(1 - levels / previous, f[f"s{number}.betas"])
    for index in range(1, number):
        level, next_level = (Level(float(a) ** 0.5, (1 - float(a)) ** 0.5) for a in (levels[index], levels[index - 1]))

        def step(sample, epsilon, noise, level=level, next_level=next_level):
            one = torch.ones(1, dtype=torch.float64)
            prediction = predict(epsilon * one, sample * one, level, "epsilon")
            return ddim_step(prediction, level, next_level, eta=1.0, variance_noise=noise * one).item()

        coefficient = {name.split(".")[1]: float(f[name][index]) for name in f if name.startswith(f"s{number}.")}
        x0_of_sample, x0_of_epsilon = (
            coefficient["sqrt_recip_alphas_cumprod"],
            coefficient["sqrt_recipm1_alphas_cumprod"],
        )
        mean_of_x0, mean_of_sample = coefficient["posterior_mean_coef1"], coefficient["posterior_mean_coef2"]
        assert step(1, 0, 0) == pytest.approx(mean_of_x0 * x0_of_sample + mean_of_sample, rel=TOLERANCE)
        assert step(0, 1, 0) == pytest.approx(-mean_of_x0 * x0_of_epsilon, rel=TOLERANCE)
        assert step(0, 0, 1) == pytest.approx(coefficient["posterior_variance"] ** 0.5, rel=TOLERANCE)
        assert step(0, 0, 1) ** 2 == pytest.approx(
            torch.tensor(coefficient["posterior_log_variance_clipped"]).exp().item(), rel=TOLERANCE
        )


def ancestral(official, denoise, sample, noise, timesteps):
    """The original's sampler, with its noise; yields the sample after every step."""
    process = process_of(official.pipe.scheduler)
    levels = [process.level(t) for t in timesteps]
    for timestep, level, next_level, draw in zip(timesteps, levels, [*levels[1:], CLEAN], noise, strict=True):
        prediction = predict(denoise(sample, timestep), sample, level, "epsilon")
        sample = ddim_step(prediction, level, next_level, eta=1.0, variance_noise=draw)
        yield sample


@pytest.mark.parametrize("depth", [13, 8])
def test_trajectory(official, depth):
    f = official.trajectory
    unet = idcompress.depth_skip(official.pipe.unet, depth)

    def denoise(sample, timestep):
        return run_unet(official, sample, f["in.struct_latent"], f["in.context"], timestep, unet)

    samples = list(ancestral(official, denoise, f["in.x_T"], f["in.noise"], respaced_timesteps(10)[::-1]))
    if depth == 13:
        close(torch.stack(samples), f["x"])
    close(samples[-1], f["final" if depth == 13 else "D8.final"])


def preset_noise(monkeypatch, *draws):
    """Give the pipeline listed noise in place of random draws."""
    queue = list(draws)
    for module in ("idcompress.models.stablesr.pipeline", "idcompress.core.ddim"):
        monkeypatch.setattr(f"{module}.randn_like", lambda sample, generator=None: queue.pop(0).to(sample))
    return queue


def test_start_from_the_image(official, monkeypatch):
    """The start of the canvas scripts, seen by the first network call."""
    f, pipe, seen = official.trajectory, official.pipe, []
    latents = official.unet["in.struct_latent"][:1]
    monkeypatch.setattr(pipe, "encode_image", lambda image, generator: (latents, None))
    preset_noise(monkeypatch, f["in.noise"][0])
    handle = pipe.unet.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    settings = {"upscale": 1, "output_type": "latent", "prompt_embeds": f["in.context"]}
    pipe(torch.zeros(1, 3, 128, 128), timesteps=[999], start="image", **settings)
    handle.remove()
    close(seen[0], f["q999"])


def test_canvas(official, monkeypatch):
    f, pipe = official.canvas, official.pipe
    close(gaussian_weights(16, 16), f["tile_weights"])
    close(gaussian_weights(64, 64), f["tile_weights_64"])

    def tile_output(rows, columns, sample, timestep):
        latents = f["in.struct_latent"][..., rows, columns]
        return run_unet(official, sample[..., rows, columns], latents, f["in.context"], timestep)

    def denoise(sample, timestep):
        compute = lambda rows, columns: tile_output(rows, columns, sample, timestep)  # noqa: E731
        return blend_tiles(compute, 24, 40, tile_size=16, tile_overlap=8)

    timesteps = respaced_timesteps(4)[::-1]
    close(torch.stack(list(ancestral(official, denoise, f["in.x_T"], f["in.noise"], timesteps))), f["x"])

    # the same through the pipeline
    monkeypatch.setattr(pipe, "encode_image", lambda image, generator: (f["in.struct_latent"], None))
    preset_noise(monkeypatch, *f["in.noise"])
    settings = {"upscale": 1, "output_type": "latent", "prompt_embeds": f["in.context"], "latents": f["in.x_T"]}
    latents = pipe(
        torch.zeros(1, 3, 24 * 8, 40 * 8), num_inference_steps=4, tile_size=16, tile_overlap=8, **settings
    ).images
    close(latents, f["final"])


def test_pixel_patches(official):
    f, rule = official.canvas, official.config["pixel_splitter"]
    image, visited = f["pixel.in.image"], []

    def operation(rows, columns):
        visited.append([rows.start, rows.stop, columns.start, columns.stop])
        return image[..., rows, columns] * 0.5 + 0.1 * (len(visited) - 1)

    overlap = rule["pch_size"] - rule["stride"]
    blended = blend_tiles(operation, 80, 112, tile_size=rule["pch_size"], tile_overlap=overlap)
    assert visited == rule["patches_h0_h1_w0_w1"]
    close(blended, f["pixel.out"])


def test_end_to_end(official, monkeypatch):
    """The pipeline as it is called, with the fixture's noise in place of draws."""
    f = official.e2e
    arguments = {"num_inference_steps": 4, "upscale": 1, "prompt_embeds": f["in.context"]}
    for output_type, color_fix, expected in (
        ("latent", None, "samples"),
        ("pt", "adain", "adain01"),
        ("pt", "wavelet", "wavelet01"),
        ("pt", None, "decoded"),
    ):
        unused = preset_noise(monkeypatch, f["in.posterior_noise"], f["in.x_T"], *f["in.noise"])
        images = official.pipe(f["in.image"], output_type=output_type, color_fix=color_fix, **arguments).images
        assert len(unused) == 1  # the draw of the last step, which adds no noise
        close(images, f[expected] if expected != "decoded" else (f[expected] / 2 + 0.5).clamp(0, 1))


def test_encoded_start(official, monkeypatch):
    f = official.e2e
    preset_noise(monkeypatch, f["in.posterior_noise"])
    image_latents, _ = official.pipe.encode_image(f["in.image"])
    close(image_latents, f["init_latent"])


def test_norm_epsilons(official):
    """With small activations everywhere, a wrong epsilon shows."""
    f, pipe, factor = official.epsprobe, official.pipe, official.config["epsprobe"]["factor"]
    models = (pipe.unet, pipe.structure_encoder, pipe.vae)
    kept = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    try:
        for model in models:
            for name, parameter in model.named_parameters():
                # the fixture's rule in our names: the output projection of a plain attention is called to_out here
                output = "proj_out" in name or ("to_out.0" in name and "transformer_blocks" not in name)
                scale = parameter.ndim == 1 and name.endswith("weight") and "spade.norm" not in name
                if not output and not scale:
                    parameter.data.mul_(factor)
        features = structure(official, official.structcond["in.latent"], 500)
        for width, feature in features.items():
            close(feature, f[f"struct.out.{width}"], EPSPROBE_TOLERANCE)
        sample, latents, context = unet_inputs(official)
        close(run_unet(official, sample, latents, context, 500), f["unet.out"], EPSPROBE_TOLERANCE)
        latent_dist, features = pipe.vae.encode(official.cfw["in.image"], return_features=True)
        close(latent_dist.parameters, f["cfw.moments"], EPSPROBE_TOLERANCE)
        decoded = pipe.vae.decode(official.cfw["in.z"], features=features, fidelity_weight=0.5).sample
        close(decoded, f["cfw.dec.w0.5"], EPSPROBE_TOLERANCE)
    finally:
        for model, state in zip(models, kept, strict=True):
            model.load_state_dict(state)
