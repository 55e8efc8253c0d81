"""InstructPix2Pix: edit an image as an instruction says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.deep_features import call_unet
from ..adapters.graphs import Decoder, Encoder, Graph, TextEncoder, UNet
from ..adapters.pipeline import draw_latents, encode_image_latents, encode_prompts
from ..core.guidance import classifier_free_guidance, dual_guidance
from ..core.reuse import Parts
from ..errors import IdcError
from ..images.edits import EDITS, TURNS, edit_for_prompt
from ..types import Example
from . import _task

if TYPE_CHECKING:
    from ..images.photo_sets import Photograph

CITATION = """@inproceedings{brooks2023instructpix2pix,
  title     = {{InstructPix2Pix}: Learning to Follow Image Editing Instructions},
  author    = {Brooks, Tim and Holynski, Aleksander and Efros, Alexei A.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  note      = {arXiv:2211.09800}
}"""


class Task(_task.Task):
    """Conditions: the instruction through the text encoder, the input's latents beside the noisy ones."""

    name = "ip2p"
    pipeline_class = "StableDiffusionInstructPix2PixPipeline"
    passes_of_pipeline = (0, 1, 2)
    unet_inputs = 2  # the picture's latents beside the noisy ones
    conditioning_dropout = 0.05  # of each of the three cases
    guidance_scales = ("guidance_scale", "image_guidance_scale")
    tiles_note = (
        "every tile follows the instruction by itself: tone and style may differ between tiles, and what an "
        "instruction moves (a flip, a turn) is moved within its tile"
    )
    tags = ("easy", "hard", *EDITS)
    numpy_example = _task.NumpyExample(
        start="""\
text, image_latents = text_encoder(input_ids=ids), vae_encoder(image=image)["mean"]
images = np.concatenate([image_latents, image_latents, 0 * image_latents])
sample = rng.standard_normal(image_latents.shape, np.float32)""",
        inputs="""\
noisy = np.concatenate([sample.repeat(3, axis=0), images], axis=1)
inputs = {{"sample": noisy, "timestep": np.array(timestep), **text}}""",
        combine="""\
both, with_image, null = outputs
output = null + {guidance_scale} * (both - with_image) + {image_guidance_scale} * (with_image - null)""",
        prompts=("make it warmer", "", ""),
    )

    def example(
        self, index: int, photo: Photograph, image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """Without a prompt the computable edits take turns, easy and hard ones mixed; their true result is the target.

        Each round of the edits starts one edit later, so that an edit does not always meet the same photograph. With
        another prompt than the photograph's own its captions do not hold, and the example has none.
        """
        captions = photo.captions if prompt is not None and prompt == photo.prompt else None
        if prompt is not None and target is not None:
            name = f"{index:04d}_{photo.name}"
            return Example(index, name, photo.digest, image, prompt, target, captions=captions)
        if prompt is None:
            prompt = TURNS[(index + index // len(TURNS)) % len(TURNS)].phrasings[0]
        edit = edit_for_prompt(prompt)
        return Example(
            index=index,
            name=f"{index:04d}_{photo.name}" + (f"_{edit.name}" if edit else ""),
            photo=photo.digest,
            image=image,
            prompt=prompt,
            target=None if edit is None else edit.apply(image[None])[0],
            captions=captions,
            tags=() if edit is None else ("hard" if edit.hard else "easy", edit.name),
        )

    def encode(self, pipeline: Any, examples: Sequence[Example], seed: int = 0) -> _task.Conditioning:
        return {
            "text": encode_prompts(pipeline, [example.prompt for example in examples]),
            "null": encode_prompts(pipeline, [""]).expand(len(examples), -1, -1),
            "image": encode_image_latents(pipeline, torch.stack([example.image for example in examples])),
        }

    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, _task.Conditioning]:
        """Three exclusive cases lack a condition, each with the probability `dropout`: text, both, image.

        Source: InstructPix2Pix, arXiv 2211.09800, Sec. 3.2.1.
        """
        targets = [example.target for example in examples if example.target is not None]
        if len(targets) < len(examples):
            missing = next(example for example in examples if example.target is None)
            raise IdcError(_unknown_result(missing.prompt, missing.name))
        conditioning = self.encode(pipeline, examples)
        draws = torch.stack([torch.rand((), generator=g) for g in generators]).view(-1, 1, 1)
        draws = draws.to(conditioning["text"].device)
        no_text, no_image = draws < 2 * dropout, (draws >= dropout) & (draws < 3 * dropout)
        latents = draw_latents(pipeline, torch.stack(targets), generators)
        return latents, {
            "text": torch.where(no_text, conditioning["null"], conditioning["text"]),
            "image": conditioning["image"] * ~no_image[..., None],
        }

    def training_fault(self, photo: Photograph, prompt: str | None) -> str | None:
        known = photo.target is not None or prompt is None or edit_for_prompt(prompt) is not None
        return None if known else _unknown_result(str(prompt), photo.name)

    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: _task.Conditioning) -> Tensor:
        model_input = torch.cat([sample, conditioning["image"]], dim=1)
        output: Tensor = pipeline.unet(model_input, timesteps, conditioning["text"]).sample
        return output

    def graphs(self, pipeline: Any) -> list[Graph]:
        """`mean` and `std` are of the image's latents, unscaled as the U-Net takes them."""
        inputs = ["sample", "timestep", "encoder_hidden_states"]
        return [
            Graph("text_encoder", TextEncoder(pipeline), ["input_ids"], ["encoder_hidden_states"]),
            Graph("vae_encoder", Encoder(pipeline.vae), ["image"], ["mean", "std"]),
            Graph("unet", UNet(pipeline), inputs, ["model_output"]),
            Graph("vae_decoder", Decoder(pipeline.vae), ["latents"], ["decoded"]),
        ]

    def draw_prompt(self, generator: torch.Generator) -> str | None:
        """Any phrasing of any computable edit."""
        edit = list(EDITS.values())[int(torch.randint(len(EDITS), (), generator=generator))]
        return edit.phrasings[int(torch.randint(len(edit.phrasings), (), generator=generator))]

    def parts(self, pipeline: Any, conditioning: _task.Conditioning, guidance: Mapping[str, float]) -> Parts:
        """Dual guidance; a scale of 1 makes a branch superfluous, and it is not computed then.

        Source: InstructPix2Pix, arXiv 2211.09800, eq. 3; branch order as in diffusers (text, image, null).
        """
        unet = pipeline.unet
        text, null, image = (conditioning[name] for name in ("text", "null", "image"))
        text_scale, image_scale = guidance["guidance_scale"], guidance["image_guidance_scale"]
        branches = 3 if image_scale != 1 else 2 if text_scale != 1 else 1
        states = torch.cat([text, null, null][:branches])
        images = torch.cat([image, image, torch.zeros_like(image)][:branches])

        def outputs(
            sample: Tensor, timestep: Tensor, passes: int, side: Any, deep: Tensor | None
        ) -> tuple[tuple[Tensor, ...], Mapping[int, Tensor]]:
            number = passes * len(sample)
            model_input = torch.cat([sample.to(unet.dtype).repeat(passes, 1, 1, 1), images[:number]], dim=1)
            output, hidden = call_unet(unet, model_input, timestep, states[:number], deep_features=deep)
            return output.sample.float().chunk(passes), hidden

        def combine(outputs: tuple[Tensor, ...]) -> Tensor:
            if branches == 3:
                return dual_guidance(outputs[0], outputs[1], outputs[2], text_scale, image_scale)
            return outputs[0] if branches == 1 else classifier_free_guidance(outputs[0], outputs[1], text_scale)

        return Parts(branches, outputs, combine)


def _unknown_result(prompt: str, name: str) -> str:
    return (
        f"the true result of {prompt!r} on {name} is not known, and training wants it; use edited pairs "
        "(data=instruct_pix2pix) or the computable edits of task.prompts=null"
    )
