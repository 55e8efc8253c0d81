"""The one text embedding StableSR uses, that of the empty prompt: stored beside the models in place of a text tower."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

# The empty prompt as the published code tokenises it: begin, end, then zeros (not the padding token of most CLIP
# tokenizers), all of them attended to.
BEGIN_TOKEN, END_TOKEN, PADDING_TOKEN = 49406, 49407, 0
HEAD_WIDTH = 64  # of the OpenCLIP text towers


class EmptyPromptEmbedding(ModelMixin, ConfigMixin):
    """A stored text embedding.

    Args:
        num_tokens, embedding_dim: its shape; 77 and 1024 for Stable Diffusion 2.
    """

    @register_to_config
    def __init__(self, num_tokens: int = 77, embedding_dim: int = 1024):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(num_tokens, embedding_dim), requires_grad=False)

    @classmethod
    def from_tensor(cls, embedding: Tensor) -> "EmptyPromptEmbedding":
        """Store an embedding (tokens, width)."""
        stored: EmptyPromptEmbedding = cls(*embedding.shape)
        stored.embedding = nn.Parameter(embedding.detach().clone(), requires_grad=False)
        return stored

    def forward(self) -> Tensor:
        """Return the embedding, (1, num_tokens, embedding_dim)."""
        return self.embedding[None]


@torch.no_grad()
def empty_prompt_by_encoder(text_encoder: Any, tokenizer: Any) -> Tensor:
    """Encode the empty prompt by Stable Diffusion 2's text encoder and tokenizer: (tokens, width)."""
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    embedding: Tensor = text_encoder(ids.to(text_encoder.device)).last_hidden_state[0]
    return embedding


def dropped_text_keys(weights: Mapping[str, Tensor]) -> set[str]:
    """Return the keys of an OpenCLIP text tower that its penultimate layer does not depend on."""
    last = num_layers(weights) - 1
    unused = {"text_projection", "logit_scale", "attn_mask"}
    return {key for key in weights if key in unused or key.startswith(f"transformer.resblocks.{last}.")}


def num_layers(weights: Mapping[str, Tensor]) -> int:
    """Count the transformer blocks of an OpenCLIP text tower by its keys."""
    return len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})


@torch.no_grad()
def empty_prompt_by_weights(weights: Mapping[str, Tensor]) -> Tensor:
    """Encode the empty prompt by an OpenCLIP text tower: all blocks but the last, then the final norm.

    One block is materialised at a time.

    Args:
        weights: state dict of the tower in OpenCLIP's names.

    Returns:
        (context length, width), float32.

    Raises:
        KeyError: a weight is missing.
        ValueError: a key fits no part of the tower.
    """
    position = weights["positional_embedding"].float()
    tokens, width = position.shape
    ids = torch.full((tokens,), PADDING_TOKEN)
    ids[0], ids[1] = BEGIN_TOKEN, END_TOKEN
    hidden_states = (weights["token_embedding.weight"][ids].float() + position)[None]
    used = {"positional_embedding", "token_embedding.weight", "ln_final.weight", "ln_final.bias"}
    mask = nn.Transformer.generate_square_subsequent_mask(tokens)
    names = {
        "attn.in_proj_weight": "self_attn.in_proj_weight",
        "attn.in_proj_bias": "self_attn.in_proj_bias",
        **{
            f"{theirs}.{kind}": f"{ours}.{kind}"
            for theirs, ours in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "norm1",
                "ln_2": "norm2",
                "mlp.c_fc": "linear1",
                "mlp.c_proj": "linear2",
            }.items()
            for kind in ("weight", "bias")
        },
    }
    for index in range(num_layers(weights) - 1):
        prefix = f"transformer.resblocks.{index}."
        block = {ours: weights[prefix + theirs].float() for theirs, ours in names.items()}
        used |= {prefix + theirs for theirs in names}
        with torch.device("meta"):
            layer = nn.TransformerEncoderLayer(
                width,
                width // HEAD_WIDTH,
                dim_feedforward=block["linear1.bias"].shape[0],
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
        layer.load_state_dict(block, assign=True)
        hidden_states = layer.eval()(hidden_states, src_mask=mask)
    unknown = sorted(set(weights) - used - dropped_text_keys(weights))
    if unknown:
        raise ValueError(f"{len(unknown)} keys fit no part of the text tower: {', '.join(unknown[:8])}")
    norm = (weights["ln_final.weight"].float(), weights["ln_final.bias"].float())
    return nn.functional.layer_norm(hidden_states, (width,), *norm)[0]
