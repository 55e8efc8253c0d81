"""Tasks whose U-Net sees something given beside the noisy latents, under one text that is empty by default."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters.deep_features import call_unet
from ..adapters.graphs import Decoder, Encoder, Graph, TextEncoder, UNet
from ..adapters.pipeline import draw_latents, encode_prompts
from ..core.guidance import classifier_free_guidance
from ..core.reuse import Parts
from ..errors import IdcError
from ..types import Example
from . import _task


class Task(_task.Task):
    """Conditioning: `text` and, for guidance, `null`; `given` (B, channels, h, w), laid behind the noisy latents."""

    @abstractmethod
    def given(self, pipeline: Any, examples: Sequence[Example]) -> _task.Conditioning:
        """`given`, and what else the task wants of a batch, in the U-Net's dtype."""

    def encode(self, pipeline: Any, examples: Sequence[Example], seed: int = 0) -> _task.Conditioning:
        return {
            "text": encode_prompts(pipeline, [example.prompt for example in examples]),
            "null": encode_prompts(pipeline, [""]).expand(len(examples), -1, -1),
            **self.given(pipeline, examples),
        }

    def encode_training(
        self, pipeline: Any, examples: Sequence[Example], generators: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, _task.Conditioning]:
        """Nothing is dropped: the text is empty as it is."""
        targets = [example.target for example in examples if example.target is not None]
        if len(targets) < len(examples):
            missing = next(example for example in examples if example.target is None)
            raise IdcError(f"the true result of {missing.name} is not known, and training wants it")
        return draw_latents(pipeline, torch.stack(targets), generators), self.encode(pipeline, examples)

    def predict(self, pipeline: Any, sample: Tensor, timesteps: Tensor, conditioning: _task.Conditioning) -> Tensor:
        model_input = torch.cat([sample, conditioning["given"]], dim=1)
        output: Tensor = pipeline.unet(model_input, timesteps, conditioning["text"]).sample
        return output

    def parts(self, pipeline: Any, conditioning: _task.Conditioning, guidance: Mapping[str, float]) -> Parts:
        """One call a step; classifier-free guidance over the text where there is a scale other than 1."""
        unet, scale = pipeline.unet, guidance.get("guidance_scale", 1.0)
        branches = 1 if scale == 1 else 2
        states = torch.cat([conditioning["text"], conditioning["null"]][:branches])
        given = conditioning["given"].repeat(branches, 1, 1, 1)

        def outputs(
            sample: Tensor, timestep: Tensor, passes: int, side: Any, deep: Tensor | None
        ) -> tuple[tuple[Tensor, ...], Mapping[int, Tensor]]:
            number = passes * len(sample)
            model_input = torch.cat([sample.to(unet.dtype).repeat(passes, 1, 1, 1), given[:number]], dim=1)
            output, hidden = call_unet(unet, model_input, timestep, states[:number], deep_features=deep)
            return output.sample.float().chunk(passes), hidden

        def combine(outputs: tuple[Tensor, ...]) -> Tensor:
            return outputs[0] if branches == 1 else classifier_free_guidance(outputs[0], outputs[1], scale)

        return Parts(branches, outputs, combine)

    def graphs(self, pipeline: Any) -> list[Graph]:
        """`mean` and `std` are of the given picture's latents, as the U-Net takes them."""
        inputs = ["sample", "timestep", "encoder_hidden_states"]
        return [
            Graph("text_encoder", TextEncoder(pipeline), ["input_ids"], ["encoder_hidden_states"]),
            Graph("vae_encoder", Encoder(pipeline.vae, self.latent_scale(pipeline)), ["image"], ["mean", "std"]),
            Graph("unet", UNet(pipeline), inputs, ["model_output"]),
            Graph("vae_decoder", Decoder(pipeline.vae), ["latents"], ["decoded"]),
        ]

    def latent_scale(self, pipeline: Any) -> float:
        """What the given picture's latents are multiplied by: 1 as in InstructPix2Pix."""
        return 1.0
