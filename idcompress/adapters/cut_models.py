"""Cut components as classes of their own, so that a saved one says what it is and loads as it was.

A cut U-Net saved under its stock class would load into the uncut one, with random weights where it was cut.
"""

from typing import Any, ClassVar

from diffusers import (
    ControlNetModel,
    ModelMixin,  # noqa: F401  saved pipelines look ModelMixin up on this module
    UNet2DConditionModel,
)

from ..models.stablesr import StableSRStructureEncoder, StableSRUNet2DConditionModel
from .controlnet import branch_plan, keep_residuals, prune_controlnet
from .unet import OF_CUTS, depth_skip
from .widths import with_widths


class _Cut:
    """from_config, and so from_pretrained, build the uncut model (on the meta device) and cut it as `key` says."""

    uncut: ClassVar[Any]
    key: ClassVar[str] = "depth"

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> Any:
        value = config.get(cls.key)
        model = cls.uncut.from_config({k: v for k, v in config.items() if k not in (*OF_CUTS, "widths")}, **kwargs)
        return model if value is None else named(cls.cut(model, value, config))

    @staticmethod
    def cut(model: Any, value: Any, config: Any) -> Any:
        return depth_skip(model, value, stub_kernel=config.get("stub_kernel"))


class DepthSkipUNet2DConditionModel(_Cut, UNet2DConditionModel):
    uncut = UNet2DConditionModel


class DepthSkipStableSRUNet2DConditionModel(_Cut, StableSRUNet2DConditionModel):
    uncut = StableSRUNet2DConditionModel


class DepthSkipControlNetModel(_Cut, ControlNetModel):
    uncut = ControlNetModel

    @staticmethod
    def cut(model: Any, value: Any, config: Any) -> Any:
        return prune_controlnet(model, branch_plan(model, value))


class FewerResidualsControlNetModel(_Cut, ControlNetModel):
    uncut = ControlNetModel
    key = "residuals"

    @staticmethod
    def cut(model: Any, value: Any, config: Any) -> Any:
        return keep_residuals(model, value)


class _Narrow(_Cut):
    key = "widths"

    @staticmethod
    def cut(model: Any, value: Any, config: Any) -> Any:
        return with_widths(model, value)


class NarrowUNet2DConditionModel(_Narrow, UNet2DConditionModel):
    uncut = UNet2DConditionModel


class NarrowStableSRUNet2DConditionModel(_Narrow, StableSRUNet2DConditionModel):
    uncut = StableSRUNet2DConditionModel


class NarrowControlNetModel(_Narrow, ControlNetModel):
    uncut = ControlNetModel


class NarrowStableSRStructureEncoder(_Narrow, StableSRStructureEncoder):
    uncut = StableSRStructureEncoder


_CLASSES = {
    (cls.uncut, cls.key): cls for cls in (*_Cut.__subclasses__(), *_Narrow.__subclasses__()) if cls is not _Narrow
}


def named(component: Any) -> Any:
    """Give a cut component, in place, the class that saves and loads it; others stay as they are."""
    for key in ("residuals", "depth", "widths"):
        cls = _CLASSES.get((type(component), key))
        if cls is not None and component.config.get(key) is not None:
            component.__class__ = cls
            break
    return component
