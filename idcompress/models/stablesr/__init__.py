"""StableSR (arXiv 2305.07015) in diffusers style: models, conversion of the published checkpoints, pipeline."""

from .autoencoder import StableSRAutoencoderKL
from .color_fix import adain_color_fix, wavelet_color_fix
from .convert import PUBLISHED_CONFIG, convert_to_folder, from_original
from .pipeline import StableSRPipeline
from .prompt import EmptyPromptEmbedding
from .respacing import respaced_timesteps
from .structure_encoder import StableSRStructureEncoder, prune_structure_encoder
from .unet import StableSRUNet2DConditionModel, num_structure_levels

__all__ = [
    "PUBLISHED_CONFIG",
    "EmptyPromptEmbedding",
    "StableSRAutoencoderKL",
    "StableSRPipeline",
    "StableSRStructureEncoder",
    "StableSRUNet2DConditionModel",
    "adain_color_fix",
    "convert_to_folder",
    "from_original",
    "num_structure_levels",
    "prune_structure_encoder",
    "respaced_timesteps",
    "wavelet_color_fix",
]
