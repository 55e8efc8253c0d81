"""Inpainting in diffusers' own way, for autoencoders of any number of latent channels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import retrieve_timesteps


class InpaintPipeline(StableDiffusionInpaintPipeline):
    """StableDiffusionInpaintPipeline for U-Nets that take the mask and the masked picture's latents, however many.

    diffusers' own class knows four latent channels: it wants a U-Net of 9 input channels, n + 1 + n with n = 4, and
    raises for any other number. This one takes any n. What it does, and the order of its draws, is the same.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        image: Any = None,
        mask_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: Any = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Any:
        """Fill the white part of the mask.

        Args:
            prompt, negative_prompt: texts, or their embeddings (B, tokens, width) by the next two but one.
            image, mask_image: PIL images, arrays or tensors, as diffusers takes them; the mask has one channel.
            height, width: of the result, in pixels; None takes the U-Net's own.
            num_inference_steps, timesteps: how many steps to take, or which.
            guidance_scale: by the text; 1 for none.
            eta: 0 for DDIM's deterministic steps, up to 1.
            generator: one, or one per image.
            latents: the noise to start from, (B, n, h, w).
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}); what it returns replaces them.

        Returns:
            StableDiffusionPipelineOutput, or a tuple of images and None.

        Raises:
            ValueError: an argument is out of range, or the U-Net does not take n + 1 + n channels.
        """
        channels = int(self.vae.config.latent_channels)
        if self.unet.config.in_channels != 2 * channels + 1:
            raise ValueError(
                f"the U-Net must take {2 * channels + 1} channels, {channels} of latents, 1 of the mask and {channels} "
                f"of the masked picture, got {self.unet.config.in_channels}"
            )
        height, width = (side or self.unet.config.sample_size * self.vae_scale_factor for side in (height, width))
        self._guidance_scale, self._interrupt = guidance_scale, False
        self._cross_attention_kwargs = self._clip_skip = None
        texts = (negative_prompt, prompt_embeds, negative_prompt_embeds)
        self.check_inputs(prompt, image, mask_image, height, width, 1.0, None, output_type, *texts)

        # 1. what conditions every step: the text, the mask, and the picture without its hole
        device, guided = self._execution_device, self.do_classifier_free_guidance
        embeds, null_embeds = self.encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            guided,
            negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
        )
        batch, dtype = len(embeds), embeds.dtype
        states = torch.cat([null_embeds, embeds]) if guided else embeds
        visited, _ = retrieve_timesteps(self.scheduler, num_inference_steps, device, timesteps)
        picture = self.image_processor.preprocess(image, height=height, width=width).to(dtype=torch.float32)
        (latents,) = self.prepare_latents(
            batch,
            channels,
            height,
            width,
            dtype,
            device,
            generator,
            latents,
            image=picture,
            timestep=visited[:1],
            is_strength_max=True,
            return_noise=False,
        )
        hole = self.mask_processor.preprocess(mask_image, height=height, width=width)
        mask, given = self.prepare_mask_latents(
            hole, picture * (hole < 0.5), batch, height, width, dtype, device, generator, guided
        )

        # 2. the steps
        further = self.prepare_extra_step_kwargs(generator, eta)
        self._num_timesteps = len(visited)
        for step, timestep in enumerate(self.progress_bar(visited)):
            noisy = self.scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            model_input = torch.cat([noisy, mask, given], dim=1)
            output = self.unet(model_input, timestep, encoder_hidden_states=states, return_dict=False)[0]
            if guided:
                null, text = output.chunk(2)
                output = null + guidance_scale * (text - null)
            latents = self.scheduler.step(output, timestep, latents, **further, return_dict=False)[0]
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)

        # 3. the picture
        flagged = None
        if output_type != "latent":
            decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False, generator=generator)
            latents, flagged = self.run_safety_checker(decoded[0], device, dtype)
        clean = [True] * len(latents) if flagged is None else [not one for one in flagged]
        images = self.image_processor.postprocess(latents, output_type=output_type, do_denormalize=clean)
        self.maybe_free_model_hooks()
        return StableDiffusionPipelineOutput(images, flagged) if return_dict else (images, flagged)
