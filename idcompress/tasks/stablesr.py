"""StableSR: restore a photograph from a small, degraded copy and enlarge it four times."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..adapters.deep_features import call_unet
from ..adapters.graphs import Graph, numbered
from ..adapters.pipeline import draw_latents, working_size
from ..core.ddim import PathNoise, without_cache
from ..core.plan import Plan
from ..core.random import image_generator
from ..core.reuse import Parts
from ..core.sample import Denoise
from ..core.tiles import blend_tiles, reflect_pad
from ..errors import IdcError
from ..images.degrade import degrade
from ..images.large import announce_tiles
from ..models.stablesr import graphs
from ..models.stablesr.pipeline import resize
from ..types import Example
from . import _task

if TYPE_CHECKING:
    from PIL import Image

    from ..images.photo_sets import Photograph

UPSCALE = 4
_PATCH_PX = 1280  # side beyond which a picture is worked on in patches
CITATION = """@article{wang2024stablesr,
  title   = {Exploiting Diffusion Prior for Real-World Image Super-Resolution},
  author  = {Wang, Jianyi and Yue, Zongsheng and Zhou, Shangchen and Chan, Kelvin C. K. and Loy, Chen Change},
  journal = {International Journal of Computer Vision (IJCV)},
  year    = {2024},
  note    = {arXiv:2305.07015}
}"""


class Task(_task.Task):
    """Conditions: latents of the enlarged input through the structure encoder; its features and colours in decoding.

    Source: StableSR, arXiv 2305.07015.
    """

    name = "stablesr"
    pipeline_class = "StableSRPipeline"
    pipeline_library = "idcompress.models.stablesr"
    getting_weights = (
        "no diffusers repository has them: get the published checkpoints (stablesr_*.ckpt and vqgan_cfw_*.ckpt), run "
        "`idc convert task=stablesr convert.main_ckpt=FILE convert.cfw_ckpt=FILE output.path=FOLDER` once, then give "
        "model.path=FOLDER"
    )
    networks_of_a_step = ("unet", "structure_encoder")
    trained = ("unet", "structure_encoder")
    sharpens_training = True  # `use_usm` of the released training configuration
    enlarges = UPSCALE
    works_in_tiles = True
    # Deterministic restoration leaves artefacts; the original samples ancestrally (arXiv 2401.17547, S8).
    own_sampler = "ancestral"
    reported_samplers = ("ddim", "ancestral")
    numpy_example = _task.NumpyExample(
        start="""\
encoded = vae_encoder(image=image)
image_latents = encoded["mean"] + encoded["std"] * rng.standard_normal(encoded["mean"].shape, np.float32)
beside = {{"image_latents": image_latents}}
sample = rng.standard_normal(image_latents.shape, np.float32)""",
        inputs='inputs = {{"sample": sample, "timestep": np.array(timestep)}}',
        side="structure_encoder",
        decode="""\
fidelity_weight = np.array(0.5, np.float32)  # 0: realistic .. 1: faithful
decoded = vae_decoder(latents=sample, fidelity_weight=fidelity_weight, **encoded)["decoded"]

(mean, std), (ours, spread) = (
    (x.mean((2, 3), keepdims=True), np.sqrt(x.var((2, 3), keepdims=True, ddof=1) + 1e-5)) for x in (image, decoded)
)
decoded = (decoded - ours) / spread * std + mean  # the input's colours""",
        upscale=UPSCALE,
        note="idcompress's pipeline enlarges by torch's bicubic kernel, small pictures further, and tiles large ones",
    )

    def __init__(
        self, *, fidelity_weight: float = 0.5, color_fix: Literal["adain", "wavelet", "none"] = "adain"
    ) -> None:
        """Options of `StableSRPipeline.__call__`.

        Raises:
            IdcError: fidelity_weight is outside [0, 1].
        """
        if not 0 <= fidelity_weight <= 1:
            raise IdcError(f"task.options.fidelity_weight must be between 0 and 1, got {fidelity_weight}")
        self.fidelity_weight = float(fidelity_weight)
        self.color_fix = None if color_fix == "none" else color_fix

    def example(
        self, index: int, photo: "Photograph", image: Tensor, prompt: str | None, target: Tensor | None = None
    ) -> Example:
        """The crop is the target; its degraded quarter, enlarged bicubically, is the image. Prompts play no part.

        Where the photograph has a small copy, that is the image.
        """
        name = f"{index:04d}_{photo.name}"
        if photo.low is not None and target is not None:
            return Example(index=index, name=name, photo=photo.digest, image=image, target=target)
        low = degrade(image[None], [image_generator(0, index)])
        enlarged = F.interpolate(low, size=image.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        return Example(index=index, name=name, photo=photo.digest, image=enlarged[0], target=image)

    def encode(self, pipeline: Any, examples: Sequence[Example], seed: int = 0) -> _task.Conditioning:
        _check_prompt(pipeline)
        image = torch.stack([example.image for example in examples]).to(pipeline.vae.device) * 2 - 1
        generators = [_posterior_generator(seed, example.index) for example in examples]
        image_latents, _ = pipeline.encode_image(image, generators)
        return {"image": image, "image_latents": image_latents, "text": pipeline.encode_prompt(len(examples))}

    def denoise(self, pipeline: Any, conditioning: _task.Conditioning, guidance: Mapping[str, float]) -> Denoise:
        """One network call per step: the published model samples without guidance."""
        _refuse_guidance(guidance)
        return without_cache(pipeline.denoiser(conditioning["image_latents"], conditioning["text"], **_tiles(pipeline)))

    def parts(self, pipeline: Any, conditioning: _task.Conditioning, guidance: Mapping[str, float]) -> Parts:
        """The structure encoder beside the U-Net; tiles of a larger canvas lie side by side in the batch."""
        _refuse_guidance(guidance)
        unet, prompts, latents = (
            pipeline.unet,
            conditioning["text"],
            conditioning["image_latents"].to(pipeline.unet.dtype),
        )
        tiles = _tiles(pipeline)

        def side(sample: Tensor, timestep: Tensor, passes: int) -> list[Any]:
            features: list[Any] = []

            def tile(rows: slice, columns: slice) -> Tensor:
                features.append(pipeline.structure_encoder(latents[..., rows, columns], timestep))
                return sample[..., rows, columns]

            blend_tiles(tile, *sample.shape[-2:], **tiles)
            return features

        def outputs(
            sample: Tensor, timestep: Tensor, passes: int, side: Any, deep: Tensor | None
        ) -> tuple[tuple[Tensor, ...], Mapping[int, Tensor]]:
            deep_of = iter([None] * len(side) if deep is None else deep.chunk(len(side)))
            features, states = iter(side), dict[int, list[Tensor]]()

            def tile(rows: slice, columns: slice) -> Tensor:
                output, hidden = call_unet(
                    unet,
                    sample[..., rows, columns].to(unet.dtype),
                    timestep,
                    prompts,
                    structure_features=next(features),
                    deep_features=next(deep_of),
                    return_dict=False,
                )
                for depth, state in hidden.items():
                    states.setdefault(depth, []).append(state)
                values: Tensor = output[0].float()
                return values

            output = blend_tiles(tile, *sample.shape[-2:], **tiles)
            return (output,), {depth: torch.cat(parts) for depth, parts in states.items()}

        return Parts(1, outputs, lambda outputs: outputs[0], side)

    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, _task.Conditioning]:
        """Posterior draws of the photograph's latents and of its degraded copy's; nothing to drop.

        Source: StableSR, arXiv 2305.07015, Sec. 3.1.
        """
        _check_prompt(pipeline)
        images = torch.stack([example.image for example in examples])
        targets = torch.stack([example.image if example.target is None else example.target for example in examples])
        return draw_latents(pipeline, targets, generators), {
            "image_latents": draw_latents(pipeline, images, generators),
            "text": pipeline.encode_prompt(len(examples)),
        }

    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: _task.Conditioning) -> Tensor:
        features = pipeline.structure_encoder(conditioning["image_latents"], timesteps)
        output: Tensor = pipeline.unet(sample, timesteps, conditioning["text"], structure_features=features).sample
        return output

    def decode(self, pipeline: Any, latents: Tensor, conditioning: _task.Conditioning) -> Tensor:
        """Decode with feature wrapping; its features, 50 MB per 512 px image, are computed again rather than kept."""
        image = conditioning["image"]
        _, features = pipeline.vae.encode(image.to(pipeline.vae.dtype), return_features=True)
        decoded: Tensor = pipeline.decode_latents(latents, features, image, self.fidelity_weight, self.color_fix)
        return (decoded / 2 + 0.5).clamp(0, 1).cpu()

    def graphs(self, pipeline: Any) -> list[Graph]:
        """`mean` and `std` are of the image's latents, scaled; the empty prompt is a constant in the U-Net's graph."""
        vae = pipeline.vae
        features = numbered("feature", len(vae.fusion_blocks))
        structure = numbered("structure", len(pipeline.structure_encoder.feature_blocks))
        weight = {"fidelity_weight": torch.tensor(0.5)}
        decoder_inputs = ["latents", "fidelity_weight", *features]
        return [
            Graph("vae_encoder", graphs.Encoder(vae), ["image"], ["mean", "std", *features]),
            Graph("structure_encoder", graphs.Structure(pipeline), ["image_latents", "timestep"], structure),
            Graph("unet", graphs.UNet(pipeline), ["sample", "timestep", *structure], ["model_output"]),
            Graph("vae_decoder", graphs.Decoder(vae), decoder_inputs, ["decoded"], values=weight),
        ]

    def encoder_tokens(self, pipeline: Any) -> int:
        return int(pipeline.encode_prompt(1).shape[1])

    def convert(self, main_ckpt: Path, cfw_ckpt: Path, folder: Path, config: Path | None) -> None:
        from ..models.stablesr import convert_to_folder

        try:
            convert_to_folder(main_ckpt, cfw_ckpt, folder, config)
        except (ValueError, KeyError, RuntimeError, EOFError) as error:
            raise IdcError(f"{main_ckpt} and {cfw_ckpt} do not convert: {error}") from None

    def translate_picture(
        self,
        pipeline: Any,
        index: int,
        photo: "Photograph",
        picture: "Image.Image",
        prompt: str | None,
        plan: Plan,
        *,
        seed: int,
        translate: Callable[[Example], Tensor],
        resolution_px: int | None = None,
    ) -> tuple[str, Tensor]:
        """Restore a picture of any size at four times its size, as the pipeline itself does: padded, in tiles.

        `resolution_px` is the side of the tiles; None takes that which the model was trained on. The start, the
        posterior's noise and the steps' have the generators that they have in a search.
        """
        _refuse_guidance(plan.guidance)
        _check_prompt(pipeline)
        if plan.sampler not in self.reported_samplers and plan.coefficients is None:
            raise IdcError(f"task=stablesr translates by sampler=ddim, ancestral or fitted, got {plan.sampler}")
        if self.process(pipeline).real_timesteps:
            raise IdcError(
                f"task=stablesr wants whole timesteps; {type(pipeline.scheduler).__name__} is that of a flow; give "
                "the model's folder the scheduler that it was trained with, like DDIMScheduler"
            )
        ancestral = plan.sampler == "ancestral"
        path = PathNoise(self.process(pipeline), [_task.step_generator(seed, index)])

        tiles, channels = _tiles(pipeline, resolution_px), int(pipeline.vae.config.latent_channels)
        target, _, canvas = pipeline.working_sizes(picture.height, picture.width, UPSCALE, tiles["tile_size"])
        number, steps = pipeline.count_tiles(canvas, **tiles), len(plan.timesteps)
        announce_tiles(
            photo.path.name, picture.size, target, canvas, number, steps, lambda: _seconds_of_a_tile(pipeline, tiles)
        )
        if not plan.is_plain:
            if max(canvas) > _PATCH_PX:
                raise IdcError(
                    f"{photo.path.name} would be worked on at {canvas[1]:,} x {canvas[0]:,} px, in patches, and this "
                    f"recipe's plan, whose steps differ in what they compute, at no more than {_PATCH_PX} px; crop it "
                    "or take another recipe"
                )
            _, working, _ = pipeline.working_sizes(picture.height, picture.width, UPSCALE, tiles["tile_size"])
            large = resize(pipeline.image_processor.preprocess(picture).float(), working).clamp(-1, 1)
            image = (reflect_pad(large, canvas)[0] + 1) / 2
            result = translate(Example(index=index, name=photo.name, photo=photo.digest, image=image))
            reduced: Tensor = resize(result[None, :, : working[0], : working[1]], target)[0]
            return "", reduced.clamp(0, 1)
        noisy = (1, channels, *(side // int(pipeline.vae_scale_factor) for side in canvas))
        images: Tensor = pipeline(
            picture,
            timesteps=list(plan.timesteps),
            upscale=UPSCALE,
            fidelity_weight=self.fidelity_weight,
            color_fix=self.color_fix,
            eta=int(ancestral),
            latents=torch.randn(noisy, generator=image_generator(seed, index)),
            generator=_posterior_generator(seed, index),
            output_type="pt",
            step_noise=(lambda start: path.over(start, plan.timesteps)) if ancestral else None,
            coefficients=plan.coefficients,
            **tiles,
        ).images
        return "", images[0].float().cpu()


def _posterior_generator(seed: int, index: int) -> torch.Generator:
    """The generator of an image's posterior noise. The start's own would make the two noises identical."""
    return image_generator(seed, -1 - index)


def _tiles(pipeline: Any, resolution_px: int | None = None) -> dict[str, Any]:
    """Tiles of a size in pixels, or of that which the model was trained on, half overlapping.

    Raises:
        IdcError: the U-Net's levels do not halve it to whole numbers.
    """
    size = working_size(pipeline, resolution_px) // int(pipeline.vae_scale_factor)
    multiple = 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    if resolution_px is not None and size % multiple:
        raise IdcError(
            f"resolution_px is the side of the tiles that task=stablesr translates in; it must be a multiple of "
            f"{multiple * int(pipeline.vae_scale_factor)}, got {resolution_px}"
        )
    return {"tile_size": size, "tile_overlap": size // 2}


@torch.inference_mode()
def _seconds_of_a_tile(pipeline: Any, sizes: dict[str, int]) -> float:
    """One call of the networks on one tile, measured once they are warm."""
    side = sizes["tile_size"]
    zeros = torch.zeros(1, int(pipeline.vae.config.latent_channels), side, side, device=pipeline.unet.device)
    denoise = pipeline.denoiser(zeros, pipeline.encode_prompt(1), **sizes)
    timestep = torch.zeros((), dtype=torch.long, device=zeros.device)
    took = 0.0
    for _ in range(2):
        began = time.perf_counter()
        denoise(zeros, timestep).cpu()  # waits for the device
        took = time.perf_counter() - began
    return took


def _check_prompt(pipeline: Any) -> None:
    if pipeline.prompt_embedding is None and (pipeline.text_encoder is None or pipeline.tokenizer is None):
        raise IdcError(
            "the model has neither a prompt_embedding nor a text tower; convert a main checkpoint with its text tower "
            "(cond_stage_model.*)"
        )


def _refuse_guidance(guidance: Mapping[str, float]) -> None:
    if guidance:
        raise IdcError(f"task=stablesr samples without guidance; leave {' and '.join(guidance)} at null")
