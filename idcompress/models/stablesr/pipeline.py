"""Super-resolution by StableSR: a diffusion pipeline conditioned on the latents of the resized low-resolution image."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from ...core.ddim import Ddim, DrawnNoise, Generators, GivenNoise, without_cache
from ...core.fit import Fitted
from ...core.plan import Plan, Step
from ...core.process import check_timesteps
from ...core.random import randn_like
from ...core.sample import Noise, trajectory
from ...core.tiles import blend_tiles, count_tiles, reflect_pad
from ...errors import NotFiniteError
from ...schedulers import process_of
from .autoencoder import StableSRAutoencoderKL
from .color_fix import adain_color_fix, wavelet_color_fix
from .prompt import EmptyPromptEmbedding, empty_prompt_by_encoder
from .respacing import respaced_timesteps
from .structure_encoder import StableSRStructureEncoder
from .unet import StableSRUNet2DConditionModel

COLOR_FIXES: dict[str | None, Callable[[Tensor, Tensor], Tensor]] = {
    "adain": adain_color_fix,
    "wavelet": wavelet_color_fix,
    None: lambda content, style: content,
}
# Images that need several tiles are padded to multiples of this many latents, as in the published code (32 pixels).
_TILED_MULTIPLE = 4


class StableSRPipeline(DiffusionPipeline):
    """Restore and enlarge images.

    Args:
        vae: autoencoder with feature wrapping.
        unet: structure-conditioned U-Net; `unet.config.sample_size`, if set, is the least latent side it is used at.
        structure_encoder: its features, recomputed at every timestep.
        scheduler: gives the noise schedule, the prediction type and possibly a list of timesteps; the sampling itself
            is `idcompress.core.sample`.
        prompt_embedding: the stored embedding of the empty prompt.
        text_encoder, tokenizer: compute it when none is stored.
    """

    model_cpu_offload_seq = "text_encoder->structure_encoder->unet->vae"
    _optional_components = ["prompt_embedding", "text_encoder", "tokenizer"]  # noqa: RUF012  diffusers' own form

    def __init__(
        self,
        vae: StableSRAutoencoderKL,
        unet: StableSRUNet2DConditionModel,
        structure_encoder: StableSRStructureEncoder,
        scheduler: SchedulerMixin,
        prompt_embedding: EmptyPromptEmbedding | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            unet=unet,
            structure_encoder=structure_encoder,
            scheduler=scheduler,
            prompt_embedding=prompt_embedding,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_processor = VaeImageProcessor(do_resize=False, do_convert_rgb=True)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        upscale: float = 4,
        fidelity_weight: float = 0.5,
        color_fix: str | None = "adain",
        eta: float | None = None,
        start: str = "noise",
        tile_size: int = 64,
        tile_overlap: int = 32,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], object] | None = None,
        patch_size: int = 1280,
        patch_overlap: int = 280,
        step_noise: Callable[[Tensor], Iterable[Tensor]] | None = None,
        coefficients: Sequence[Sequence[float]] | None = None,
    ) -> Any:
        """Restore a batch of images of one size.

        Args:
            image: PIL image(s), or arrays (H, W, 3) / tensors (3, H, W) or (B, 3, H, W) in [0, 1]; a tensor with
                negative values is taken to be in [-1, 1].
            num_inference_steps: how many respaced timesteps to visit.
            timesteps: never increasing training timesteps to visit in place of those; None takes the list that the
                scheduler's config holds, if it is a `FixedTimestepsScheduler`.
            upscale: output size over input size. The resizing is bicubic, as for the models' training; the published
                script for 512 x 512 resizes bilinearly, which `upscale=1` on a resized image reproduces.
            fidelity_weight: 0 (most realistic) .. 1 (most faithful), weight of the feature wrapping.
            color_fix: "adain" (the paper's), "wavelet" or None.
            eta: 0 for deterministic DDIM, up to 1; None for the ancestral sampler of the original, which is eta 1.
            start: "noise" starts from pure noise (published script for 512 x 512), "image" from the noised
                low-resolution latents (published scripts for larger images).
            tile_size: latent side of the tiles whose model outputs are blended at every step; a multiple of 8.
            tile_overlap: latents that neighbouring tiles share.
            latents: the start itself, (B, 4, h, w) over the padded canvas; `start` is then not used.
            prompt_embeds: embedding of the empty prompt, (1 or B, tokens, width).
            generator: one for the batch, or one per image. Drawn from in order: posterior noise, start, steps.
            output_type: "pil", "np" (B, H, W, 3) in [0, 1], "pt" (B, 3, H, W) in [0, 1], or "latent".
            return_dict: `ImagePipelineOutput`, or else a tuple.
            callback_on_step_end: called as (pipeline, step index, timestep, {"latents": the clean latents predicted
                at this step}); what it returns is not used.
            patch_size: images wider or higher than this many pixels are restored patch by patch.
            patch_overlap: pixels that neighbouring patches share.
            step_noise: start of a patch (B, 4, h, w) -> unit noise of every step but the last, in place of draws from
                `generator`; `idcompress.core.ddim.path_noise` makes it.
            coefficients: numbers of each step that were fitted for these timesteps, see `idcompress.core.fit`; the
                scheduler's own come with its list. Steps with numbers are deterministic.

        Returns:
            images of `upscale` times the input's size.

        Raises:
            ValueError: an argument is out of range; the message says which.
        """
        if color_fix not in COLOR_FIXES:
            raise ValueError(f"color_fix must be adain, wavelet or None, got {color_fix!r}")
        if start not in ("noise", "image"):
            raise ValueError(f"start must be noise or image, got {start!r}")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}")
        factor = self.vae_scale_factor
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        if tile_size < multiple or tile_size % multiple:
            raise ValueError(f"tile_size must be a multiple of {multiple} latents, got {tile_size}")
        if patch_size % (factor * multiple) or patch_overlap % factor:
            raise ValueError(
                f"patch_size must be a multiple of {factor * multiple} pixels and patch_overlap of {factor}, "
                f"got {patch_size} and {patch_overlap}"
            )
        if timesteps is None:
            timesteps, coefficients = (self.scheduler.config.get(name) for name in ("timesteps", "coefficients"))
        if coefficients is not None and eta:
            raise ValueError(f"eta must be 0 or None where the steps have fitted coefficients, got {eta}")
        process = process_of(self.scheduler)
        if timesteps is None:
            timesteps = respaced_timesteps(num_inference_steps, process.num_train_timesteps)[::-1]
        timesteps = check_timesteps(timesteps, process.num_train_timesteps)

        # 1. the image at working size: upscaled, at least as large as the model knows, padded to whole latents
        image = self.image_processor.preprocess(image).to(self._execution_device, torch.float32)
        target, working, padded = self.working_sizes(image.shape[-2], image.shape[-1], upscale, tile_size)
        image = reflect_pad(resize(image, working).clamp(-1, 1), padded)
        canvas = (image.shape[0], self.vae.config.latent_channels, *(side // factor for side in padded))
        if latents is not None and tuple(latents.shape) != canvas:
            raise ValueError(f"latents must be {canvas} for this image, got {tuple(latents.shape)}")
        if output_type == "latent" and max(padded) > patch_size:
            raise ValueError(f"output_type=latent needs one patch; raise patch_size from {patch_size} to {max(padded)}")

        # 2. restore, patch by patch; every patch sees the same noise
        prompt_embeds = self.encode_prompt(image.shape[0], prompt_embeds)
        if generator is None:
            seed = int(torch.randint(2**62, ()))
            generator = torch.Generator(self._execution_device).manual_seed(seed)
        generators = generator if isinstance(generator, list) else [generator]
        states = [one.get_state() for one in generators]

        def restore(rows: slice, columns: slice) -> Tensor:
            for one, state in zip(generators, states, strict=True):
                one.set_state(state)
            patch = image[..., rows, columns]
            image_latents, features = self.encode_image(patch, generator)
            if latents is not None:
                noisy = latents[..., _latent_slice(rows, factor), _latent_slice(columns, factor)].to(image_latents)
            else:
                noisy = randn_like(image_latents, generator)
                if start == "image":
                    level = process.level(timesteps[0])
                    noisy = level.signal * image_latents + level.noise * noisy
            noise: Noise = DrawnNoise(generator) if step_noise is None else GivenNoise(step_noise(noisy))
            denoise = without_cache(self.denoiser(image_latents, prompt_embeds, tile_size, tile_overlap))
            sampler = Fitted() if coefficients is not None else Ddim(1.0 if eta is None else eta)
            numbers = None if coefficients is None else tuple(map(tuple, coefficients))
            plan = Plan(tuple(map(Step, timesteps)), coefficients=numbers)
            with self.progress_bar(total=len(timesteps)) as progress_bar:
                for visit in trajectory(denoise, noisy, plan, process, sampler, noise=noise):
                    restored = visit.moment.prediction.pred_original_sample
                    what = "the output of unet and structure_encoder in the step at timestep"
                    _check_finite(restored, f"{what} {timesteps[visit.position]}", self.unet.dtype)
                    if callback_on_step_end is not None:
                        callback_on_step_end(self, visit.position, timesteps[visit.position], {"latents": restored})
                    progress_bar.update()
            ((_, final),) = visit.finished  # fitted numbers move the last prediction, too
            if output_type == "latent":
                return final
            return self.decode_latents(final, features, patch, fidelity_weight, color_fix)

        result = blend_tiles(restore, padded[0], padded[1], tile_size=patch_size, tile_overlap=patch_overlap)

        # 3. take padding and enlargement away again
        if output_type != "latent":
            result = resize(result[..., : working[0], : working[1]], target)
            result = (result / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        images = _convert(result, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def working_sizes(
        self, height: int, width: int, upscale: float = 4, tile_size: int = 64
    ) -> tuple[list[int], list[int], list[int]]:
        """[height, width] in pixels of the result, of the image that is worked on, and of its padded canvas."""
        target = [max(round(side * upscale), 1) for side in (height, width)]
        size = self.unet.config.sample_size or 0
        least = (min(size) if isinstance(size, (list, tuple)) else size) * self.vae_scale_factor
        enlarge = max(least / min(target), 1.0)
        working = [round(side * enlarge) for side in target]
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        return target, working, [self._padded_side(side, tile_size, multiple) for side in working]

    def count_tiles(
        self,
        canvas: Sequence[int],
        tile_size: int = 64,
        tile_overlap: int = 32,
        patch_size: int = 1280,
        patch_overlap: int = 280,
    ) -> int:
        """Calls of the U-Net that one step takes on a padded canvas [height, width] in pixels, of all patches."""
        patches = count_tiles(canvas[0], canvas[1], patch_size, patch_overlap)
        height, width = (min(side, patch_size) // self.vae_scale_factor for side in canvas)
        return patches * count_tiles(height, width, tile_size, tile_overlap)

    def _padded_side(self, side: int, tile_size: int, multiple: int) -> int:
        """Round a side in pixels up to what one tile, or several tiles, can cover."""
        unit = self.vae_scale_factor * (multiple if side <= tile_size * self.vae_scale_factor else _TILED_MULTIPLE)
        return -(-side // unit) * unit

    def encode_prompt(self, batch_size: int = 1, prompt_embeds: Tensor | None = None) -> Tensor:
        """Return the empty prompt's embedding (B, tokens, width) in the U-Net's dtype: given, stored, or computed."""
        if prompt_embeds is None and self.prompt_embedding is not None:
            prompt_embeds = self.prompt_embedding()
        elif prompt_embeds is None and self.text_encoder is not None and self.tokenizer is not None:
            prompt_embeds = empty_prompt_by_encoder(self.text_encoder, self.tokenizer)[None]
        elif prompt_embeds is None:
            raise ValueError(
                "this pipeline has no prompt_embedding and no text tower; pass prompt_embeds, "
                f"(1, tokens, {self.unet.config.cross_attention_dim})"
            )
        prompt_embeds = prompt_embeds.to(self._execution_device, self.unet.dtype)
        return prompt_embeds.expand(batch_size, -1, -1)

    def fix_prompt(self) -> Tensor:
        """Store the embedding of the empty prompt in place of the text tower, if there is one, and return it.

        Returns:
            (1, tokens, width): what every call of the U-Net is given.
        """
        embedding = self.encode_prompt(1)
        if self.text_encoder is not None:
            stored = EmptyPromptEmbedding.from_tensor(embedding[0])
            self.register_modules(prompt_embedding=stored, text_encoder=None, tokenizer=None)
        return embedding

    def encode_image(self, image: Tensor, generator: Generators = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Draw the low-resolution latents of an image at working size.

        Args:
            image: (B, 3, H, W) in [-1, 1], H and W multiples of `vae_scale_factor`.
            generator: of the posterior noise, one for the batch or one per image.

        Returns:
            scaled latents (B, 4, h, w), float32, and the features to wrap into the decoder, in the autoencoder's dtype.
        """
        latent_dist, features = self.vae.encode(image.to(self.vae.dtype), return_features=True)
        image_latents = latent_dist.mean + latent_dist.std * randn_like(latent_dist.mean, generator)
        return self.vae.config.scaling_factor * image_latents.float(), features

    def denoiser(
        self, image_latents: Tensor, prompt_embeds: Tensor, tile_size: int = 64, tile_overlap: int = 32
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Close over the conditioning.

        Args:
            image_latents: scaled low-resolution latents, (B, 4, h, w).
            prompt_embeds: (B, tokens, width), of `encode_prompt`.
            tile_size, tile_overlap: in latents; model outputs of several tiles are blended.

        Returns:
            (sample (B, 4, h, w) float32, timestep) -> model output, float32 whatever the models' dtype.
        """
        dtype = self.unet.dtype
        image_latents = image_latents.to(dtype)

        def denoise(sample: Tensor, timestep: Tensor) -> Tensor:
            def tile(rows: slice, columns: slice) -> Tensor:
                features = self.structure_encoder(image_latents[..., rows, columns], timestep)
                noisy = sample[..., rows, columns].to(dtype)
                output = self.unet(noisy, timestep, prompt_embeds, structure_features=features, return_dict=False)[0]
                return output.float()

            height, width = sample.shape[-2:]
            return blend_tiles(tile, height, width, tile_size=tile_size, tile_overlap=tile_overlap)

        return denoise

    def decode_latents(
        self,
        latents: Tensor,
        features: Sequence[Tensor],
        image: Tensor,
        fidelity_weight: float = 0.5,
        color_fix: str | None = "adain",
    ) -> Tensor:
        """Decode sampled latents (B, 4, h, w), scaled, into images (B, 3, H, W), float32 about [-1, 1], not clamped.

        Args:
            features: of `encode_image`.
            image: the image that was encoded; its colours are the ones to keep.
        """
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        decoded = self.vae.decode(latents, features=features, fidelity_weight=fidelity_weight).sample
        _check_finite(decoded, "the picture that the autoencoder (vae) decodes after the last step", self.vae.dtype)
        return COLOR_FIXES[color_fix](decoded.float(), image)


def _check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    if not bool(values.isfinite().all()):
        advice = "try another model" if dtype == torch.float32 else "try float32"
        raise NotFiniteError(f"{what} holds NaN or infinity, computed in {str(dtype).removeprefix('torch.')}; {advice}")


def _latent_slice(pixels: slice, factor: int) -> slice:
    return slice(pixels.start // factor, pixels.stop // factor)


def resize(image: Tensor, size: list[int]) -> Tensor:
    """Resize by bicubic interpolation without antialiasing, as the published code; unchanged at its own size."""
    if list(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False)


def _convert(images: Tensor, output_type: str) -> Any:
    """Convert (B, 3, H, W) in [0, 1]; 8-bit images are truncated, not rounded, as the published code does."""
    if output_type in ("latent", "pt"):
        return images
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays
    return [PIL.Image.fromarray(array) for array in (arrays * 255).astype(np.uint8)]
