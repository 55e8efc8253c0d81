"""Cut components as classes of their own, so that a saved one says what it is and loads as it was.

A cut U-Net saved under its stock class would load into the uncut one, with random weights where it was cut.
"""

from typing import Any, ClassVar

from diffusers import (
    ControlNetModel,
    ModelMixin,  # noqa: F401  saved pipelines look ModelMixin up on this module
    UNet2DConditionModel,
)

from ..core.skip_plan import UNetShape, skip_plan
from ..models.stablesr import StableSRUNet2DConditionModel
from .controlnet import prune_controlnet
from .unet import depth_skip


class _Cut:
    """from_config, and so from_pretrained, build the uncut model (on the meta device) and cut it at config.depth."""

    uncut: ClassVar[Any]

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        depth = config.get("depth")
        model = cls.uncut.from_config({k: v for k, v in config.items() if k != "depth"}, **kwargs)
        return model if depth is None else named(cls.cut(model, depth))

    @staticmethod
    def cut(model: Any, depth: int) -> Any:
        return depth_skip(model, depth)


class DepthSkipUNet2DConditionModel(_Cut, UNet2DConditionModel):
    uncut = UNet2DConditionModel


class DepthSkipStableSRUNet2DConditionModel(_Cut, StableSRUNet2DConditionModel):
    uncut = StableSRUNet2DConditionModel


class DepthSkipControlNetModel(_Cut, ControlNetModel):
    uncut = ControlNetModel

    @staticmethod
    def cut(model: Any, depth: int) -> Any:
        layers = tuple(len(block.resnets) for block in model.down_blocks)
        samplers = tuple(bool(block.downsamplers) for block in model.down_blocks)
        # The branch alone does not know its U-Net's decoder; the mirrored one has as many layers, widths play no part.
        widths = (0,) * (1 + sum(layers) + sum(samplers))
        shape = UNetShape(layers, samplers, tuple(n + 1 for n in reversed(layers)), widths, widths)
        return prune_controlnet(model, skip_plan(shape, depth))


_CLASSES = {cls.uncut: cls for cls in _Cut.__subclasses__()}


def named(component: Any) -> Any:
    """Give a cut component, in place, the class that saves and loads it; others stay as they are."""
    if type(component) in _CLASSES and component.config.get("depth") is not None:
        component.__class__ = _CLASSES[type(component)]
    return component
