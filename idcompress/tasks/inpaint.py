"""Inpainting: fill the hole of a photograph so that it fits its surroundings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torch import Tensor

from ..adapters.pipeline import encode_image_latents
from ..core.process import Level, Prediction
from ..core.random import image_generator
from ..errors import IdcError
from ..images.masks import KINDS, draw_mask
from ..images.pictures import load_image
from ..types import Example
from . import _beside, _task

if TYPE_CHECKING:
    from ..images.photo_sets import Photograph

CITATION = """@inproceedings{rombach2022high,
  title     = {High-Resolution Image Synthesis with Latent Diffusion Models},
  author    = {Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bj{\\"o}rn},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2112.10752}
}"""

_STOCK_CHANNELS = 9  # the only number of input channels for which diffusers' pipeline gives the U-Net a mask


class Task(_beside.Task):
    """Conditions: the mask and the masked picture's latents beside the noisy ones; the text is empty by default.

    Source: diffusers' StableDiffusionInpaintPipeline; Diffusion Model Compression for Image-to-Image Translation, Sec.
    4.5 and S5. The masked picture's latents are the mode of its posterior, where the pipeline draws from it.
    """

    name = "inpaint"
    pipeline_class = "StableDiffusionInpaintPipeline"
    own_pipeline_class = "InpaintPipeline"
    further_arguments = {"mask_image": "Image.open('mask.png').convert('L')"}  # noqa: RUF012
    passes_of_pipeline = (1, 0)
    unet_inputs = 2  # the masked picture's latents beside the noisy ones
    unet_mask_channels = 1
    guidance_scales = ("guidance_scale",)
    tiles_note = (
        "no tile sees another: a hole that is larger than a tile is filled without knowing all its surroundings"
    )
    tags = KINDS
    numpy_example = _task.NumpyExample(
        start="""\
mask = np.zeros_like(image[:, :1])  # 1 where the picture is to be filled: here its middle
height, width = mask.shape[2:]
mask[..., height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
text = text_encoder(input_ids=ids)
image_latents = vae_encoder(image=image * (mask < 0.5))["mean"]
given = np.concatenate([mask[..., ::{factor}, ::{factor}], image_latents], axis=1)
sample = rng.standard_normal(image_latents.shape, np.float32)""",
        inputs="""\
noisy = np.concatenate([sample, given], axis=1)
inputs = {{"sample": noisy, "timestep": np.array(timestep), **text}}""",
        prompts=("",),
        note="the empty prompt needs no guidance, so the program has none",
    )

    def __init__(
        self, *, masks: Literal["both", "box", "free_form"] = "both", mask: str = "", keep_known: bool = False
    ) -> None:
        """Choose the holes.

        Args:
            masks: that are drawn; both take turns.
            mask: a picture, white where to fill, that is used in place of drawn ones.
            keep_known: put the known surroundings back into every predicted result, which the pipeline does not.
        """
        self.kinds = KINDS if masks == "both" else (masks,)
        self.keep_known = keep_known
        self.mask = load_image(Path(mask).expanduser()).convert("L") if mask else None

    @classmethod
    def runnable(cls, pipeline: Any) -> Any:
        """diffusers' class takes U-Nets of 9 channels, of four latent channels; any others get `InpaintPipeline`."""
        if pipeline.unet.config.in_channels == _STOCK_CHANNELS:
            return pipeline
        from ..models.inpaint import InpaintPipeline

        return InpaintPipeline(**pipeline.components, requires_safety_checker=False)

    def example(
        self, index: int, photo: Photograph, image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """The crop is the target, with its hole in grey the image; the condition is the mask on three channels.

        The text stays empty, as in the paper, unless another one than the photograph's own is asked for.
        """
        height, width = image.shape[-2:]
        tags: tuple[str, ...] = ()
        if self.mask is None:
            # The photographs take turns as well: their number and that of the kinds may share a factor.
            kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=image_generator(1, index)))]
            mask, tags = draw_mask(kind, height, width, image_generator(0, index)), (kind,)
        else:
            mask = _fitted(self.mask, height, width)
        return Example(
            index=index,
            name=f"{index:04d}_{photo.name}",
            photo=photo.digest,
            image=torch.where(mask > 0.5, torch.tensor(0.5), image),
            prompt="" if prompt is None or prompt == photo.prompt else prompt,
            target=image,
            condition=mask.expand(3, -1, -1).contiguous(),
            tags=tags,
        )

    def given(self, pipeline: Any, examples: Sequence[Example]) -> _task.Conditioning:
        """The mask, nearest pixels, before the masked picture's scaled latents, as in diffusers."""
        masks = [example.condition[:1] for example in examples if example.condition is not None]
        images = torch.stack([example.image for example in examples])
        latents = encode_image_latents(pipeline, images) * pipeline.vae.config.scaling_factor
        mask = F.interpolate(torch.stack(masks), latents.shape[-2:]).to(latents)
        return {"given": torch.cat([mask, latents], dim=1)}

    def project(self, prediction: Prediction, level: Level, conditioning: _task.Conditioning) -> Prediction:
        """With `keep_known`, the predicted result outside the hole becomes what is known there."""
        if not self.keep_known:
            return prediction
        original, epsilon = prediction
        given = conditioning["given"].float()
        mask, known = given[:, :1], given[:, 1:]
        kept = torch.where(mask > 0.5, original, known)
        return Prediction(kept, epsilon + level.signal / level.noise * (original - kept))  # of the same sample

    def latent_scale(self, pipeline: Any) -> float:
        return float(pipeline.vae.config.scaling_factor)


def _fitted(mask: Image.Image, height: int, width: int) -> Tensor:
    """A picture as a mask (1, height, width) of 0 and 1."""
    small = mask.resize((width, height), Image.Resampling.BILINEAR)
    values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, height, width)
    if not bool((values > 127).any()):
        raise IdcError("task.options.mask has nothing white, so nothing would be filled; white is the hole")
    return (values > 127).float()
