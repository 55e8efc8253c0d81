"""COCO 2017: photographs with captions by people"""

import json
from pathlib import Path
from typing import Any, Literal

from ..errors import IdcError
from ..images.photo_sets import Files, PhotographSet, check_split, folders, found_in
from ..images.pictures import is_image, some, warn_once
from ..images.prompts import read_csv

_FORMS = (
    '.json with {"000000000139.jpg": "a room"} or COCO\'s results [{"image_id": 139, "caption": "a room"}], .csv with '
    "the columns file_name and caption, or .txt with lines like 000000000139.jpg a room"
)


def load(
    path: str | list[str] | None, split: str, *, captions: Literal["first", "all"] = "first", captions_file: str = ""
) -> PhotographSet:
    """List captioned photographs: train2017 to train, halves of val2017 to search and evaluate, "all" is val2017.

    Args:
        captions: of each photograph the one with the lowest annotation id, or one after the other, each a photograph
            of its own.
        captions_file: captions to use instead, say of a captioning model, .json, .csv or .txt by file name; photographs
            that it leaves out are left out.

    Raises:
        IdcError: a folder, annotation or caption file is not there or not as it should be.
    """
    check_split(split)
    roots = [] if path is None else folders(path)
    if len(roots) != 1:
        raise IdcError(f"data=coco wants data.path=FOLDER, one that holds val2017/ and annotations/; got {path}")
    root, part = roots[0], "train2017" if split == "train" else "val2017"
    if not (root / part).is_dir():
        raise IdcError(f"data.path={root}: want {part}/ and annotations/captions_{part}.json; found {found_in(root)}")
    source = Path(captions_file).expanduser() if captions_file else root / "annotations" / f"captions_{part}.json"
    by_file = (_from_file if captions_file else _from_annotations)(source)
    there = {entry.name for entry in (root / part).iterdir() if entry.stat().st_size}  # not those of a broken download
    present = sorted(there & by_file.keys())
    if not present:
        raise IdcError(f"{source} names no image of {root / part}, which holds {found_in(root / part)}")
    for what, names in (
        (f"images of {root / part} have no caption in {source.name}", filter(is_image, there - by_file.keys())),
        (f"captions of {source} are of images that are not in {root / part}", by_file.keys() - there),
    ):
        left_out = sorted(names)
        if left_out:
            warn_once(f"{len(left_out)} {what} and are left out: {some(left_out)}")
    if split in ("search", "evaluate"):
        present = present[("search", "evaluate").index(split) :: 2]
    chosen = {
        f"{Path(name).stem}_{number}" if number else Path(name).stem: (str(root / part / name), text)
        for name in present
        for number, text in enumerate(by_file[name][: 1 if captions == "first" else None])
    }
    prompts = {name: text for name, (_, text) in chosen.items()}
    return Files(list(chosen), [file for file, _ in chosen.values()], prompts=prompts, own_splits=True)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError:
        near = path.parent if path.parent.is_dir() else path.parent.parent
        raise IdcError(f"there is no {path}; {near} holds {found_in(near)}") from None
    except UnicodeDecodeError:
        raise IdcError(f"{path} is not UTF-8 text") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise IdcError(f"{path} is not JSON ({error})") from None


def _from_annotations(path: Path) -> dict[str, list[str]]:
    """File name -> captions in order of annotation id."""
    annotations = _read_json(path)
    try:
        names = {image["id"]: image["file_name"] for image in annotations["images"]}
        found: dict[str, list[str]] = {}
        for annotation in sorted(annotations["annotations"], key=lambda annotation: annotation["id"]):
            found.setdefault(names[annotation["image_id"]], []).append(annotation["caption"].strip())
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise IdcError(f"{path} is not as COCO's captions: {type(error).__name__} {error}") from None


def _from_file(path: Path) -> dict[str, list[str]]:
    """File name -> its caption, from a file of one's own."""
    try:
        rows: Any
        if path.suffix == ".json":
            value = _read_json(path)
            listed = not isinstance(value, dict)
            rows = [(f"{int(row['image_id']):012d}.jpg", row["caption"]) for row in value] if listed else value.items()
        elif path.suffix == ".csv":
            rows = [(row["file_name"], row["caption"]) for _, row in read_csv(path, _read(path), "file_name")]
        elif path.suffix == ".txt":
            rows = [line.split(maxsplit=1) for line in _read(path).split("\n") if line.strip()]
        else:
            raise ValueError(f"its name ends in {path.suffix or 'nothing'}")
        return {name: [caption.strip()] for name, caption in rows}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise IdcError(f"data.options.captions_file={path}: want {_FORMS}; got {error}") from None
