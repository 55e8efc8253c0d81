"""COCO 2017: photographs with captions by people"""

import json
from pathlib import Path
from typing import Any, Literal

from ..data.photographs import Files, PhotographSet, check_split, folders, found_in
from ..errors import IdcError


def load(
    path: str | list[str] | None, split: str, *, captions: Literal["first", "all"] = "first", captions_file: str = ""
) -> PhotographSet:
    """List captioned photographs: train2017 to train, halves of val2017 to search and evaluate, "all" is val2017.

    Args:
        captions: of each photograph the one with the lowest annotation id, or one after the other, each a photograph
            of its own.
        captions_file: captions to use instead, say of a captioning model: a JSON object {file name: caption}.

    Raises:
        IdcError: a folder or annotation file is not there or not as COCO's.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if len(roots) != 1:
        raise IdcError(f"data=coco wants data.path=FOLDER, one that holds val2017/ and annotations/; got {path}")
    root, part = roots[0], "train2017" if split == "train" else "val2017"
    if not (root / part).is_dir():
        raise IdcError(f"data.path={root}: want {part}/ and annotations/captions_{part}.json; found {found_in(root)}")
    source = Path(captions_file).expanduser() if captions_file else root / "annotations" / f"captions_{part}.json"
    texts = _read_json(source, root)
    by_file = {name: [text] for name, text in texts.items()} if captions_file else _by_file(texts, source)
    present = sorted(entry.name for entry in (root / part).iterdir() if entry.name in by_file)
    if not present:
        raise IdcError(f"{source} names no image of {root / part}, which holds {found_in(root / part)}")
    if split in ("search", "evaluate"):
        present = present[("search", "evaluate").index(split) :: 2]
    chosen = {
        f"{Path(name).stem}_{number}" if number else Path(name).stem: (str(root / part / name), text)
        for name in present
        for number, text in enumerate(by_file[name][: 1 if captions == "first" else None])
    }
    prompts = {name: text for name, (_, text) in chosen.items()}
    return Files(list(chosen), [file for file, _ in chosen.values()], prompts=prompts, own_splits=True)


def _read_json(path: Path, root: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        near = path.parent if path.parent.is_dir() else root
        raise IdcError(f"there is no {path}; {near} holds {found_in(near)}") from None
    except ValueError as error:
        raise IdcError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise IdcError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _by_file(annotations: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """File name -> captions in order of annotation id."""
    try:
        names = {image["id"]: image["file_name"] for image in annotations["images"]}
        found: dict[str, list[str]] = {}
        for annotation in sorted(annotations["annotations"], key=lambda annotation: annotation["id"]):
            found.setdefault(names[annotation["image_id"]], []).append(annotation["caption"].strip())
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise IdcError(f"{path} is not as COCO's captions: {type(error).__name__} {error}") from None
