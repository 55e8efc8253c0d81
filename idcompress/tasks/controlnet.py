"""ControlNet, canny: make an image from its edges and a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..adapters.deep_features import call_unet
from ..adapters.graphs import Decoder, Graph, TextEncoder, UNet, numbered
from ..adapters.pipeline import draw_latents, encode_prompts
from ..adapters.unet import full_depth
from ..core.guidance import classifier_free_guidance
from ..core.random import image_generator
from ..core.reuse import Parts
from ..images.canny import canny
from ..images.captions import caption
from ..types import Example
from . import _task

if TYPE_CHECKING:
    from ..images.photo_sets import Photograph

CITATION = """@inproceedings{zhang2023controlnet,
  title     = {Adding Conditional Control to Text-to-Image Diffusion Models},
  author    = {Zhang, Lvmin and Rao, Anyi and Agrawala, Maneesh},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023},
  note      = {arXiv:2302.05543}
}"""


class Task(_task.Task):
    """Conditions: the caption through the text encoder, the edges through the control branch."""

    name = "controlnet"
    pipeline_class = "StableDiffusionControlNetPipeline"
    separate_components = {"controlnet": "ControlNetModel"}  # noqa: RUF012  read only
    networks_of_a_step = ("unet", "controlnet")
    passes_of_pipeline = (1, 0)
    encodes_image = False  # the branch takes pixels
    trained = ("unet", "controlnet")
    conditioning_dropout = 0.5  # of the captions
    guidance_scales = ("guidance_scale",)
    tiles_note = (
        "every tile is made of its own edges and the caption of the whole picture: colours and objects may differ "
        "between tiles"
    )
    cut_note = "Guess mode of the shortened control branch weighs its residuals differently than the full one's."
    numpy_example = _task.NumpyExample(
        start="""\
text, beside = text_encoder(input_ids=ids), {{"controlnet_cond": image.repeat(2, axis=0)}}
sample = rng.standard_normal((1, {latent_channels}, size[1] // {factor}, size[0] // {factor}), np.float32)""",
        inputs='inputs = {{"sample": sample.repeat(2, axis=0), "timestep": np.array(timestep), **text}}',
        combine="""\
with_text, null = outputs
output = null + {guidance_scale} * (with_text - null)""",
        side="controlnet",
        prompts=("a bright photograph", ""),
        image_range=(0, 1),
    )

    def __init__(self, *, canny_thresholds: Literal["fixed", "random"] = "fixed") -> None:
        """Edges by thresholds 100 and 200, or by random ones around them: to train a branch that takes either."""
        self.random_thresholds = canny_thresholds == "random"

    def example(
        self, index: int, photo: Photograph, image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """The condition is the crop's edge map, on three channels. Without a prompt, measured facts are the caption."""
        low, high = 100, 200
        if self.random_thresholds:
            draws = torch.randint(50, 150, (2,), generator=image_generator(0, index))
            low, high = int(draws[0]), int(draws.sum())
        return Example(
            index=index,
            name=f"{index:04d}_{photo.name}",
            photo=photo.digest,
            image=image,
            prompt=caption(image) if prompt is None else prompt,
            condition=canny(image[None], low, high)[0].expand(3, -1, -1).contiguous(),
        )

    def encode(self, pipeline: Any, examples: Sequence[Example], seed: int = 0) -> _task.Conditioning:
        conditions = torch.stack([example.condition for example in examples if example.condition is not None])
        return {
            "text": encode_prompts(pipeline, [example.prompt for example in examples]),
            "null": encode_prompts(pipeline, [""]).expand(len(examples), -1, -1),
            "condition": conditions.to(pipeline.controlnet.device, pipeline.controlnet.dtype),
        }

    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, _task.Conditioning]:
        """Captions are dropped, edges are not.

        Source: ControlNet, arXiv 2302.05543, Sec. 3.3.
        """
        conditioning = self.encode(pipeline, examples)
        draws = torch.stack([torch.rand((), generator=g) for g in generators]).view(-1, 1, 1)
        no_text = draws.to(conditioning["text"].device) < dropout
        latents = draw_latents(pipeline, torch.stack([example.image for example in examples]), generators)
        return latents, {
            "text": torch.where(no_text, conditioning["null"], conditioning["text"]),
            "condition": conditioning["condition"],
        }

    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: _task.Conditioning) -> Tensor:
        states, condition = conditioning["text"], conditioning["condition"]
        down, middle = pipeline.controlnet(sample, timesteps, states, controlnet_cond=condition, return_dict=False)
        output: Tensor = pipeline.unet(
            sample, timesteps, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return output

    def graphs(self, pipeline: Any) -> list[Graph]:
        """The branch comes before the U-Net, which takes its residuals in a row; the input image is not encoded."""
        branch = _Branch(pipeline)
        residuals = numbered("residual", branch.units + branch.has_middle)
        inputs = ["sample", "timestep", "encoder_hidden_states"]
        return [
            Graph("text_encoder", TextEncoder(pipeline), ["input_ids"], ["encoder_hidden_states"]),
            Graph("controlnet", branch, [*inputs, "controlnet_cond"], residuals),
            Graph("unet", UNet(pipeline), [*inputs, *residuals], ["model_output"]),
            Graph("vae_decoder", Decoder(pipeline.vae), ["latents"], ["decoded"]),
        ]

    def parts(self, pipeline: Any, conditioning: _task.Conditioning, guidance: Mapping[str, float]) -> Parts:
        """Classifier-free guidance over the caption, with control in both branches, as diffusers does by default."""
        unet, branch = pipeline.unet, pipeline.controlnet
        scale = guidance["guidance_scale"]
        branches = 2 if scale != 1 else 1
        states = torch.cat([conditioning["text"], conditioning["null"]][:branches])
        condition = conditioning["condition"].repeat(branches, 1, 1, 1)

        def inputs(sample: Tensor, timestep: Tensor, passes: int) -> tuple[Tensor, Tensor, Tensor]:
            return sample.to(unet.dtype).repeat(passes, 1, 1, 1), timestep, states[: passes * len(sample)]

        def side(sample: Tensor, timestep: Tensor, passes: int) -> tuple[Tensor, ...]:
            controls = condition[: passes * len(sample)]
            arguments = inputs(sample, timestep, passes)
            down, middle = branch(*arguments, controlnet_cond=controls, return_dict=False)
            return (*down, middle)

        def outputs(
            sample: Tensor, timestep: Tensor, passes: int, side: Any, deep: Tensor | None
        ) -> tuple[tuple[Tensor, ...], Mapping[int, Tensor]]:
            *down, middle = side
            output, hidden = call_unet(
                unet,
                *inputs(sample, timestep, passes),
                down_block_additional_residuals=tuple(down),
                mid_block_additional_residual=middle,
                deep_features=deep,
            )
            return output.sample.float().chunk(passes), hidden

        def combine(outputs: tuple[Tensor, ...]) -> Tensor:
            return outputs[0] if branches == 1 else classifier_free_guidance(outputs[0], outputs[1], scale)

        return Parts(branches, outputs, combine, side)


class _Branch(nn.Module):
    """The residuals that the U-Net reads; a stock branch may have more than its U-Net, a cut one has no middle."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.controlnet = pipeline.controlnet
        self.units = min(len(self.controlnet.controlnet_down_blocks), full_depth(pipeline.unet) - 1)
        self.has_middle = self.controlnet.config.get("depth") is None

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        down, middle = self.controlnet(*inputs, return_dict=False)
        return (*down[: self.units], middle) if self.has_middle else tuple(down)
