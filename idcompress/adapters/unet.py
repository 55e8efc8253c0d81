"""Depth-skip pruning of diffusers U-Nets: a plan applied to modules, names intact."""

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.skip_plan import SkipPlan, UNetShape, skip_plan

Model = TypeVar("Model", bound=nn.Module)

_CHANGED: WeakKeyDictionary[Any, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
_MOST_CHANGED = 64

# Configuration entries that say how a network was cut.
OF_CUTS = ("depth", "stub_kernel", "residuals")

# Configuration entries that may hold one value per level, outermost first.
_PER_LEVEL = (
    "down_block_types",
    "block_out_channels",
    "attention_head_dim",
    "num_attention_heads",
    "only_cross_attention",
    "cross_attention_dim",
    "transformer_layers_per_block",
)


def shorten_levels(config: dict[str, Any], levels: int) -> dict[str, Any]:
    """A network's configuration for its first so many levels, but for what it says of up blocks."""
    return {
        name: value[:levels] if name in _PER_LEVEL and isinstance(value, (list, tuple)) else value
        for name, value in config.items()
    }


def full_depth(unet: UNet2DConditionModel) -> int:
    """Depth of the uncut U-Net: its skips plus the middle block, 13 for Stable Diffusion.

    A pruned U-Net answers with the depth of the model it was cut from.
    """
    return unet_shape(unet).full_depth


def depth(unet: UNet2DConditionModel) -> int:
    """The depth a U-Net has now: what it was cut to, or its full depth."""
    return int(unet.config.get("depth") or full_depth(unet))


def depth_skip(unet: UNet2DConditionModel, depth: int, *, stub_kernel: int | None = None) -> UNet2DConditionModel:
    """Cut a U-Net at a depth, exactly as the released code skips it.

    The result keeps encoder units 0 .. depth - 1 and the decoder units that read their skips; zeros stand for the
    hidden state at the cut. It is called like the full model and gives the same kind of output. Surviving parameters
    keep their names, and are the argument's own, so that a cut costs no memory: copy.deepcopy the result before it is
    trained, where the argument is still needed. The full control branch's residuals are accepted as well as a pruned
    branch's: those of dropped levels, the middle one included, are ignored.

    Args:
        unet: any UNet2DConditionModel, in any dtype, also on the meta device, also one cut before to a larger depth.
        depth: levels to keep, 1 .. full_depth(unet), 1-based as in the paper.
        stub_kernel: side of a convolution of the last kept skip that stands in place of the zeros, and gives zeros
            until it is fitted (`adapters.stub`). None: the paper's zeros.

    Returns:
        A new, smaller model with `config.depth == depth`.

    Raises:
        ValueError: the depth is out of range, or larger than what an already cut model still has.

    Source: Kim et al., ACCV 2024, Sec. 3.2 and the released depth-skip code.
    """
    plan = skip_plan(unet_shape(unet), depth)
    present = unet.config.get("depth")
    if present is not None and depth > present:
        raise ValueError(f"this U-Net was already cut to depth {present}; depth {depth} needs the full model")
    pruned = apply_plan(unet, plan)
    if depth == plan.full_depth:
        return pruned
    pruned.register_to_config(depth=depth)
    if stub_kernel is not None:
        like = next(pruned.parameters())
        skip_channels = unet_shape(unet).skip_channels[depth - 1]
        pruned.mid_block = StubHidden(skip_channels, plan.hidden_channels, stub_kernel).to(like.device, like.dtype)
        pruned.mid_block.requires_grad_(like.requires_grad).train(pruned.training)
    if stub_kernel is not None or unet.config.get("stub_kernel") is not None:
        pruned.register_to_config(stub_kernel=stub_kernel)
    if present is None:
        pruned.register_forward_pre_hook(_ignore_dropped_residuals, with_kwargs=True)
    return pruned


def unet_shape(unet: UNet2DConditionModel) -> UNetShape:
    """Read a U-Net's shape from its configuration, built on the meta device: no weights, no memory."""
    key = repr(sorted((k, v) for k, v in unet.config.items() if not k.startswith("_") and k not in OF_CUTS))
    cache_key = (type(unet), key)
    if cache_key not in _SHAPES:
        model = unet
        if unet.config.get("depth") is not None:
            with torch.device("meta"):
                model = type(unet).from_config({k: v for k, v in unet.config.items() if k not in OF_CUTS})
        _SHAPES[cache_key] = _measure(model)
    return _SHAPES[cache_key]


_SHAPES: dict[tuple[type, str], UNetShape] = {}


def _measure(unet: UNet2DConditionModel) -> UNetShape:
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    skips = [unet.conv_in.out_channels]
    try:
        resnets = [resnet for block in up for resnet in block.resnets]
        for block in down:
            skips += [resnet.out_channels for resnet in block.resnets]
            skips += [sampler.out_channels for sampler in block.downsamplers or ()]
    except AttributeError as error:
        kinds = sorted({type(block).__name__ for block in (*down, *up)})
        raise ValueError(f"depth-skip does not know the blocks of this U-Net ({', '.join(kinds)}): {error}") from None
    return UNetShape(
        down_layers=tuple(len(block.resnets) for block in down),
        downsamplers=tuple(bool(block.downsamplers) for block in down),
        up_layers=tuple(len(block.resnets) for block in up),
        up_in_channels=tuple(resnet.in_channels for resnet in resnets),
        skip_channels=tuple(skips),
    )


def apply_plan(unet: UNet2DConditionModel, plan: SkipPlan) -> UNet2DConditionModel:
    """What a plan keeps of a full or less deeply cut U-Net, as modules of its own over the same parameters."""
    if plan.depth == plan.full_depth:
        return sharing(unet)
    dropped: list[nn.Module] = [unet.mid_block] if unet.mid_block is not None else []
    dropped += drop_encoder(unet.down_blocks, plan)
    for name, keep in enumerate(plan.up_layers):
        block = unet.up_blocks._modules.get(str(name))
        if block is not None:
            dropped += [block] if keep == 0 else _dropped_layers(block, keep, at_end=True)
    pruned = sharing(unet, without=dropped)
    pruned.mid_block = ZeroHidden(plan.hidden_channels)
    pruned.num_upsamplers = sum(bool(getattr(block, "upsamplers", None)) for block in pruned.up_blocks)
    return pruned


def cut_ends(unet: nn.Module) -> list[str]:
    """Modules of a cut U-Net that read or give something else than in the whole one, by name.

    They are the first layer that is left of the decoder, which reads zeros in place of the deeper hidden state, and
    the stub where there is one. Everything else has the inputs that it had.
    """
    blocks = [
        (name, block) for name, block in unet.named_modules() if name.startswith("up_blocks.") and name.count(".") == 1
    ]
    if not isinstance(unet.mid_block, (ZeroHidden, StubHidden)):
        return []
    name, block = blocks[0]
    first = f"{name}.resnets.{next(iter(block.resnets._modules))}"  # type: ignore[union-attr]
    return [first, *(["mid_block"] if isinstance(unet.mid_block, StubHidden) else [])]


def drop_encoder(down_blocks: Any, plan: SkipPlan) -> list[nn.Module]:
    """The modules of an encoder (a U-Net's or a control branch's) that a plan drops."""
    dropped: list[nn.Module] = []
    for name, (keep, keep_downsampler) in enumerate(zip(plan.down_layers, plan.downsamplers, strict=True)):
        block = down_blocks._modules.get(str(name))
        if block is None:
            continue
        if keep is None:
            dropped.append(block)
            continue
        dropped += _dropped_layers(block, keep, at_end=False)
        if block.downsamplers is not None and not keep_downsampler:
            dropped.append(block.downsamplers)
    return dropped


def _dropped_layers(block: Any, keep: int, *, at_end: bool) -> list[nn.Module]:
    """Residual layers and attentions that go when `keep` of the full model's stay, at the block's end or front."""
    found: list[nn.Module] = []
    for layers in (block.resnets, getattr(block, "attentions", None)):
        if layers is not None:
            indices = {int(name): layer for name, layer in layers._modules.items()}
            start = max(indices) + 1 - keep if at_end else 0
            found += [layer for index, layer in indices.items() if not start <= index < start + keep]
    return found


def sharing(model: Model, without: Iterable[nn.Module] = ()) -> Model:
    """A model with modules of its own over the parameters and buffers of another, and without some submodules.

    It is compiled if the other is, by torch.compile's defaults. A dropped member of a ModuleList leaves a gap in the
    names and none in the order (KeyedModuleList); any other dropped submodule becomes None.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(module): None for module in without}
    made = copy.deepcopy(model, memo)
    for parent in list(made.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.ModuleList) and any(member is None for member in child._modules.values()):
                kept = {key: member for key, member in child._modules.items() if member is not None}
                parent._modules[name] = KeyedModuleList(kept)
    if model._compiled_call_impl is not None:
        made.compile()
    return made


def changed(model: Model, key: tuple[Any, ...], change: Callable[[Model], None]) -> Model:
    """What `sharing` makes of a model, with a change. It is made once, and of many those that were wanted last stay.

    Args:
        key: names the change.
    """
    copies, key = _CHANGED.setdefault(model, {}), (model._compiled_call_impl is not None, *key)
    made: Model | None = copies.pop(key, None)
    if made is None:
        made = sharing(model)
        change(made)
    copies[key] = made  # the last one now
    for oldest in list(copies)[:-_MOST_CHANGED]:
        copies.pop(oldest, None)
    return made


class KeyedModuleList(nn.ModuleList):
    """A ModuleList with gaps in its names: position i is the i-th member, whose name may be another number."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def __getitem__(self, index: int | slice) -> Any:
        members = list(self._modules.values())
        return members[index]


class ZeroHidden(nn.Module):
    """Stands in the middle of a cut U-Net: zeros of the hidden state's width at the skip's size, dtype and device.

    They lie in memory as the skip does, channels last or first, so that what is added to them does.
    """

    def __init__(self, hidden_channels: int) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels

    def forward(self, sample: Tensor, *_: Any) -> Tensor:
        # The official code feeds float32 zeros whatever the weights are; the activation dtype is what it means.
        batch, size = sample.shape[0], sample.shape[2:]
        if not sample.is_contiguous() and sample.is_contiguous(memory_format=torch.channels_last):
            return sample.new_zeros(batch, *size, self.hidden_channels).permute(0, 3, 1, 2)
        return sample.new_zeros(batch, self.hidden_channels, *size)

    def extra_repr(self) -> str:
        return f"hidden_channels={self.hidden_channels}"


class StubHidden(nn.Module):
    """Stands in the middle of a cut U-Net: predicts the hidden state at the cut from the last kept skip."""

    def __init__(self, skip_channels: int, hidden_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(skip_channels, hidden_channels, kernel, padding=kernel // 2)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, sample: Tensor, *_: Any) -> Tensor:
        return self.conv(sample)


def _ignore_dropped_residuals(
    unet: UNet2DConditionModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let a cut U-Net take control residuals of the full branch (12 + 1 for SD) or of the pruned one, and features.

    `deep_features` (B, hidden channels, h, w) stand in place of the zeros at the cut: they are added to them, as
    diffusers adds a control branch's middle residual.
    """
    names = list(inspect.signature(type(unet).forward).parameters)[1:]
    kwargs = dict(zip(names[2:], args[2:], strict=False)) | kwargs
    deep, wanted = kwargs.pop("deep_features", None), int(unet.config.depth)
    residuals, middle = (
        kwargs.get("down_block_additional_residuals"),
        kwargs.get("mid_block_additional_residual"),
    )
    if residuals is not None and middle is not None:
        if len(residuals) < wanted:
            raise ValueError(f"a U-Net of depth {wanted} wants {wanted} control residuals, got {len(residuals)}")
        kwargs["down_block_additional_residuals"] = tuple(residuals[:wanted])
        kwargs["mid_block_additional_residual"] = 0.0 if deep is None else deep
    elif deep is not None:
        kwargs["down_block_additional_residuals"] = (0.0,) * wanted
        kwargs["mid_block_additional_residual"] = deep
    return args[:2], kwargs  # sample and timestep stay where they were: DeepCache reads them by position
