"""High-frequency synthesis: give a restored, smooth photograph the detail that restoration cannot bring back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..adapters.pipeline import encode_image_latents
from ..core.random import image_generator
from ..images.deblur import draw_restored
from ..types import Example
from . import _beside, _task

if TYPE_CHECKING:
    from ..images.photo_sets import Photograph

CITATION = """@inproceedings{kim2024diffusion,
  title     = {Diffusion Model Compression for Image-to-Image Translation},
  author    = {Kim, Geonung and Kim, Beomsu and Park, Eunhyeok and Cho, Sunghyun},
  booktitle = {Asian Conference on Computer Vision (ACCV)},
  year      = {2024}
}"""


class Task(_beside.Task):
    """Conditions: the restored picture's latents beside the noisy ones, as in InstructPix2Pix; the text is empty.

    Source: Diffusion Model Compression for Image-to-Image Translation, Sec. 4.5 and S5.
    """

    name = "high_frequency"
    pipeline_class = "StableDiffusionInstructPix2PixPipeline"
    further_arguments = {"guidance_scale": "1.0"}  # noqa: RUF012  the pipeline's default is another
    getting_weights = (
        "none are published (the paper trained its own, Sec. S5): train a model of InstructPix2Pix's architecture on "
        "pairs of restored and true photographs, and give its folder by model.path=FOLDER"
    )
    passes_of_pipeline = (0, 1, 2)
    unet_inputs = 2  # the restored picture's latents beside the noisy ones
    numpy_example = _task.NumpyExample(
        start="""\
text, image_latents = text_encoder(input_ids=ids), vae_encoder(image=image)["mean"]
sample = rng.standard_normal(image_latents.shape, np.float32)""",
        inputs="""\
noisy = np.concatenate([sample, image_latents], axis=1)
inputs = {{"sample": noisy, "timestep": np.array(timestep), **text}}""",
        prompts=("",),
    )

    def example(
        self, index: int, photo: Photograph, image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """A pair of the data set as it is; else the crop is the target, and blurred and deblurred the image."""
        name = f"{index:04d}_{photo.name}"
        if target is None:
            image, target = draw_restored(image, image_generator(0, index)), image
        return Example(index=index, name=name, photo=photo.digest, image=image, target=target)

    def given(self, pipeline: Any, examples: Sequence[Example]) -> _task.Conditioning:
        return {"given": encode_image_latents(pipeline, torch.stack([example.image for example in examples]))}

    def picture_example(self, index: int, photo: Photograph, image: Tensor, prompt: str | None) -> Example:
        """The picture is restored already."""
        return Example(index=index, name=f"{index:04d}_{photo.name}", photo=photo.digest, image=image)
