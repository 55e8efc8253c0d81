"""CLIP embeddings through open_clip, from weights on this machine only.

`ViT-L-14` with tag `openai` is what InstructPix2Pix measures with; every other open_clip model with a text tower of
its own works as well. One image or text at a time in float32, so that no batch size shows in a value.
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import IdcError, did_you_mean
from ..runs.files import file_digest
from ._weights import find_weights

_FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_config.json")
_DEFAULT, _DEFAULT_REPOSITORY = ("ViT-L-14", "openai"), "timm/vit_large_patch14_clip_224.openai"
_MAX_CACHED = 20_000
# What open_clip raises for a file that is cut short, holds code, or belongs to another architecture.
_UNFIT = (SafetensorError, pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError)


class Clip:
    """A CLIP model with its tokenizer; embeddings are of unit length and remembered by content.

    Attributes:
        path: the weight file.
        digest: its SHA-256.
        named: True where the weights are the published ones of a model and tag, by the place they were found in;
            False for a file or folder that was given.
    """

    def __init__(self, model: Any, tokenizer: Any, path: Path, named: bool, device: str) -> None:
        import open_clip

        self.path = path
        self.digest = file_digest(path)
        self.named = named
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._device = device
        settings = open_clip.get_model_preprocess_cfg(model)
        size = settings["size"]
        self._size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self._mean = torch.tensor(settings["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(settings["std"]).view(1, 3, 1, 1)
        self._cache: dict[str, Tensor] = {}

    def encode_image(self, image: Tensor, *, crop: bool = False) -> Tensor:
        """Embed one image.

        Args:
            image: (3, H, W), float32 in [0, 1].
            crop: False: stretched to the network's square by plain bicubic interpolation, as InstructPix2Pix does.
                True: the shorter side resized by antialiased bicubic interpolation and the centre cut out, as CLIP's
                own preprocessing does.

        Returns:
            (D,), float64, of length 1.
        """
        key = hashlib.sha256(image.contiguous().numpy().tobytes() + f"{tuple(image.shape)}{crop}".encode()).hexdigest()
        if key not in self._cache:
            batch = self._crop(image[None]) if crop else self._stretch(image[None])
            batch = (batch - self._mean) / self._std
            with torch.inference_mode():
                self._remember(key, self._model.encode_image(batch.to(self._device)))
        return self._cache[key]

    def encode_text(self, text: str) -> Tensor:
        """Embed one text (cut to the model's context length): (D,), float64, of length 1."""
        key = f"text {text}"
        if key not in self._cache:
            with torch.inference_mode():
                self._remember(key, self._model.encode_text(self._tokenizer([text]).to(self._device)))
        return self._cache[key]

    def _remember(self, key: str, features: Tensor) -> None:
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[key] = torch.nn.functional.normalize(features[0].double().cpu(), dim=-1)

    def _stretch(self, batch: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(batch, size=self._size, mode="bicubic", align_corners=False)

    def _crop(self, batch: Tensor) -> Tensor:
        scale = max(wanted / present for wanted, present in zip(self._size, batch.shape[-2:], strict=True))
        size = [max(w, round(p * scale)) for w, p in zip(self._size, batch.shape[-2:], strict=True)]
        batch = torch.nn.functional.interpolate(batch, size=size, mode="bicubic", align_corners=False, antialias=True)
        top, left = ((p - w) // 2 for p, w in zip(size, self._size, strict=True))
        return batch.clamp(0, 1)[..., top : top + self._size[0], left : left + self._size[1]]


_loaded: dict[tuple[str, str, str, str], Clip] = {}  # by model, tag, weights, device: the last one


def load_clip(model: str, tag: str, weights: str, device: str, metric: str) -> Clip:
    """Load a CLIP model; the metrics of one run share it.

    Args:
        model: open_clip's name of the architecture.
        tag: open_clip's name of the training run.
        weights: "": looked for; else a safetensors (or plain .pt) file of that architecture and tag, or a folder with
            open_clip_config.json and open_clip_model.safetensors, which then decides about the architecture.
        device: where it runs.
        metric: who asks, for the error.

    Raises:
        IdcError: unknown model or tag, absent or unfit weights; at once, without a try at a network.
    """
    key = (model, tag, weights, device)
    if key not in _loaded:
        found = _load(model, tag, weights, device, metric)
        _loaded.clear()
        _loaded[key] = found
    return _loaded[key]


def _load(model: str, tag: str, weights: str, device: str, metric: str) -> Clip:
    folder = Path(weights).expanduser() if weights and Path(weights).expanduser().is_dir() else None
    if folder is not None and (folder / _FOLDER_FILES[1]).is_file():
        return _from_folder(folder, device, metric)
    if (model, tag) == _DEFAULT:  # importing open_clip takes seconds that a refusal need not wait for
        _find(model, tag, weights, _DEFAULT_REPOSITORY, metric)
    import open_clip

    if model not in open_clip.list_models():
        raise IdcError(f"{metric}: open_clip has no model {model!r}{did_you_mean(model, open_clip.list_models())}")
    published = open_clip.get_pretrained_cfg(model, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise IdcError(f"{metric}: open_clip has no weights {tag!r} for {model}{did_you_mean(tag, tags)}")
    _check_text_tower(open_clip.get_model_config(model), model, metric)
    path = _find(model, tag, weights, published.get("hf_hub", "").strip("/"), metric)
    with torch.random.fork_rng(devices=[]):
        try:
            network = open_clip.create_model(
                model,
                pretrained=str(path),
                force_quick_gelu=bool(published.get("quick_gelu", False)),
                force_preprocess_cfg={key: published[key] for key in ("mean", "std") if key in published},
                pretrained_text=False,
                weights_only=True,
            )
        except _UNFIT as error:
            raise IdcError(f"{metric}: {path} does not fit {model} ({str(error).splitlines()[0][:100]})") from None
    return Clip(network, open_clip.get_tokenizer(model), path, named=not weights, device=device)


def _find(model: str, tag: str, weights: str, repository: str, metric: str) -> Path:
    name = f"{model}-{tag}.safetensors"
    return find_weights(
        (name, _FOLDER_FILES[0]) if weights else (name,),
        path=weights,
        repository=repository,
        folder_file=_FOLDER_FILES[0],
        source=f"https://huggingface.co/{repository} ({_FOLDER_FILES[0]}, saved under that name)",
        metric=metric,
    )


def _from_folder(folder: Path, device: str, metric: str) -> Clip:
    import open_clip

    path = folder / _FOLDER_FILES[0]
    if not path.is_file():
        raise IdcError(f"{metric}: {folder} has {_FOLDER_FILES[1]} and no {_FOLDER_FILES[0]}")
    try:
        config = json.loads((folder / _FOLDER_FILES[1]).read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError):
        raise IdcError(f"{metric}: {folder / _FOLDER_FILES[1]} is no open_clip configuration (no model_cfg)") from None
    _check_text_tower(config, str(folder), metric)
    name = f"local-dir:{folder}"
    with torch.random.fork_rng(devices=[]):
        try:
            network = open_clip.create_model(name, pretrained_text=False, require_pretrained=True)
        except _UNFIT as error:
            raise IdcError(f"{metric}: {folder} does not load ({str(error).splitlines()[0][:100]})") from None
    return Clip(network, open_clip.get_tokenizer(name), path, named=False, device=device)


def _check_text_tower(config: dict[str, Any], model: str, metric: str) -> None:
    """Refuse text towers and tokenizers that open_clip would fetch from the hub."""
    text = config.get("text_cfg", {})
    if "hf_model_name" in text or "hf_tokenizer_name" in text or "siglip" in model.lower():
        raise IdcError(f"{metric}: {model} takes its tokenizer from the hub; want a model like ViT-L-14 (tag openai)")
