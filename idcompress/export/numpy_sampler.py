"""The Python of an ONNX folder's card: input.png to output.png by NumPy and onnxruntime, executable as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.process import CLEAN, Level

# What a model output says of the sample at a level, as in core/process.py.
_PREDICTIONS = {
    "epsilon": "epsilon, x0 = output, (sample - noise * output) / signal",
    "v_prediction": "epsilon, x0 = signal * output + noise * sample, signal * sample - noise * output",
    "sample": "epsilon, x0 = (sample - signal * output) / noise, output",
    "flow": "epsilon, x0 = sample + signal * output, sample - noise * output",
}
_HEAD = """\
import numpy as np
import onnxruntime
from PIL import Image
"""
_NETWORKS = """\

def network(name):
    session = onnxruntime.InferenceSession(f"{{name}}.onnx")
    inputs, outputs = ([entry.name for entry in ends] for ends in (session.get_inputs(), session.get_outputs()))
    return lambda **values: dict(zip(outputs, session.run(outputs, {{name: values[name] for name in inputs}})))

{names} = map(network, "{words}".split())
"""
_TEXT = """\
tokenizer = CLIPTokenizer.from_pretrained("tokenizer")
ids = tokenizer({prompts}, padding="max_length", truncation=True, return_tensors="np").input_ids
"""
_PICTURE = """\
picture = Image.open("input.png").convert("RGB")
{note}size = [side {enlarged}// {factor} * {factor} for side in picture.size]
image = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)[None] {scale}
rng = np.random.default_rng(0)
timesteps = {timesteps}
levels = {levels}  # (signal, noise) there; (1, 0) is the picture itself
"""
_SAMPLING = {
    "ip2p": """
text, image_latents = text_encoder(input_ids=ids), vae_encoder(image=image)["mean"]
images = np.concatenate([image_latents, image_latents, 0 * image_latents])
sample = rng.standard_normal(image_latents.shape, np.float32)
for timestep, (signal, noise), (next_signal, next_noise) in zip(timesteps, levels, levels[1:]):
    noisy = np.concatenate([sample.repeat(3, axis=0), images], axis=1)
    both, image, null = unet(sample=noisy, timestep=np.array(timestep), **text)["model_output"][:, None]
    output = null + {guidance_scale} * (both - image) + {image_guidance_scale} * (image - null)
    {prediction}
    sample = next_signal * x0 + next_noise * epsilon
decoded = vae_decoder(latents=sample)["decoded"]
""",
    "controlnet": """
text, images = text_encoder(input_ids=ids), image.repeat(2, axis=0)
sample = rng.standard_normal((1, {latent_channels}, size[1] // {factor}, size[0] // {factor}), np.float32)
for timestep, (signal, noise), (next_signal, next_noise) in zip(timesteps, levels, levels[1:]):
    inputs = {{"sample": sample.repeat(2, axis=0), "timestep": np.array(timestep), **text}}
    with_text, null = unet(**inputs, **controlnet(**inputs, controlnet_cond=images))["model_output"][:, None]
    output = null + {guidance_scale} * (with_text - null)
    {prediction}
    sample = next_signal * x0 + next_noise * epsilon
decoded = vae_decoder(latents=sample)["decoded"]
""",
    "stablesr": """
encoded = vae_encoder(image=image)
image_latents = encoded["mean"] + encoded["std"] * rng.standard_normal(encoded["mean"].shape, np.float32)
sample = rng.standard_normal(image_latents.shape, np.float32)
for timestep, (signal, noise), (next_signal, next_noise) in zip(timesteps, levels, levels[1:]):
    structure = structure_encoder(image_latents=image_latents, timestep=np.array(timestep))
    output = unet(sample=sample, timestep=np.array(timestep), **structure)["model_output"]
    {prediction}
    sample = next_signal * x0 + next_noise * epsilon
fidelity_weight = np.array(0.5, np.float32)  # 0: realistic .. 1: faithful
decoded = vae_decoder(latents=sample, fidelity_weight=fidelity_weight, **encoded)["decoded"]

(mean, std), (ours, spread) = (
    (x.mean((2, 3), keepdims=True), np.sqrt(x.var((2, 3), keepdims=True, ddof=1) + 1e-5)) for x in (image, decoded)
)
decoded = (decoded - ours) / spread * std + mean  # the input's colours
""",
}
_SAVE = """
pixels = (decoded[0] / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)
Image.fromarray((pixels * 255).round().astype(np.uint8)).save("output.png")
"""
# networks, prompts, how much a picture is enlarged, the range of its values
_TASKS = {
    "ip2p": ("text_encoder, vae_encoder, unet, vae_decoder", ["make it warmer", "", ""], "", "/ 127.5 - 1"),
    "controlnet": ("text_encoder, controlnet, unet, vae_decoder", ["a bright photograph", ""], "", "/ 255"),
    "stablesr": ("vae_encoder, structure_encoder, unet, vae_decoder", [], "* 4 ", "/ 127.5 - 1"),
}
_NOTE = "# idcompress's pipeline enlarges by torch's bicubic kernel, small pictures further, and tiles large ones\n"


def numpy_code(
    task: str,
    timesteps: Sequence[float],
    levels: Sequence[Level],
    guidance: dict[str, float],
    prediction_type: str,
    latent_channels: int,
    factor: int,
) -> list[str]:
    """Lines that make output.png.

    Args:
        levels: (signal, noise) at the timesteps.
        factor: pixels per latent.
    """
    names, prompts, enlarged, scale = _TASKS[task]
    head = _HEAD + ("from transformers import CLIPTokenizer\n" if prompts else "")
    text = _TEXT.format(prompts=str(prompts).replace("'", '"')) if prompts else ""
    networks = _NETWORKS.format(names=names, words=names.replace(",", ""))
    picture = _PICTURE.format(
        note=_NOTE if enlarged else "",
        enlarged=enlarged,
        factor=factor,
        scale=scale,
        timesteps=list(timesteps),
        levels=[tuple(float(f"{part:.9g}") for part in level) for level in (*levels, CLEAN)],
    )
    sampling = _SAMPLING[task].format(
        prediction=_PREDICTIONS[prediction_type],
        latent_channels=latent_channels,
        factor=factor,
        **({"guidance_scale": 1.0, "image_guidance_scale": 1.0} | guidance),
    )
    return (head + networks + text + picture + sampling + _SAVE).splitlines()
