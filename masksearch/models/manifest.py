"""The masks in a model's folder: one file for each part, and a manifest with their SHA-256.

`masksearch.json`:

    {"format": 1,
     "model_class": "BertModel",                                   # for readers; not used
     "backend": "auto",
     "masks": {"self": {"file": "mask.json", "sha256": "..."}},    # part -> file
     "files": ["config.json", "mask.json", "model.safetensors"],   # of this save
     "versions": {"masksearch": "...", "torch": "...", "transformers": "..."}}
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from masksearch.errors import MaskFormatError
from masksearch.masks.content import ContentMask
from masksearch.masks.core import Mask
from masksearch.masks.lower import load_mask, save_mask
from masksearch.models.folders import MANIFEST, settle
from masksearch.models.parts import SELF
from masksearch.results.trial_data import own_version

FORMAT = 1  # of the manifest
LARGEST = 1 << 20  # bytes of a manifest that is read
AnyMask = Mask | ContentMask


def write_masks(
    masks: Mapping[str, AnyMask],
    folder: Path,
    *,
    model_class: str,
    backend: str = "auto",
    others: Iterable[str] = (),
) -> None:
    """Writes a file for each mask, then the manifest.

    Args:
        masks: Part -> mask.
        folder: Made where it is missing.
        model_class: Name of the model's class in transformers.
        backend: As in `masksearch.attach`.
        others: Names of the model's own files in the same save.
    """
    entries: dict[str, dict[str, str]] = {}
    for part, mask in masks.items():
        taken = {entry["file"] for entry in entries.values()}
        path = folder / file_name(part, mask, taken)
        save_mask(mask, path)
        entries[part] = {"file": path.name, "sha256": sha256(path)}
    manifest = {
        "format": FORMAT,
        "model_class": model_class,
        "backend": backend,
        "masks": entries,
        "files": sorted({*others, *(entry["file"] for entry in entries.values())}),
        "versions": {
            "masksearch": own_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }
    partial = folder / f"{MANIFEST}.part"
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)


def file_name(part: str, mask: AnyMask, taken: set[str]) -> str:
    """`mask.json` of a plain model, else `mask.<part>.json`; `.safetensors` where tables are."""
    suffix = ".safetensors" if holds_table(mask) else ".json"
    stem = "mask" if part == SELF else "mask." + re.sub(r"[^\w.-]", "_", part)[:100]
    while f"{stem}{suffix}" in taken:
        stem += "_"
    return f"{stem}{suffix}"


def holds_table(mask: Any) -> bool:
    """Whether a mask's expression holds a tensor."""
    if isinstance(mask, Tensor):
        return True
    if isinstance(mask, tuple):
        return any(holds_table(item) for item in mask)
    if not dataclasses.is_dataclass(mask):
        return False
    return any(holds_table(getattr(mask, field.name)) for field in dataclasses.fields(mask))


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_masks(folder: Path) -> tuple[dict[str, AnyMask], str]:
    """The masks of a folder by part, and the backend that was asked for.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If one is damaged, changed, or of a newer version.
    """
    if not folder.is_dir():
        remedy = "give one that save_pretrained wrote, or masks.parse(...) of an expression"
        raise FileNotFoundError(f"{folder}: no such folder; {remedy}")
    settle(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}, so no mask was saved there by masksearch; load the "
            "model with transformers and attach a mask: ms.attach(model, mask)"
        )
    try:
        if path.stat().st_size > LARGEST:
            raise MaskFormatError(f"it has more than {LARGEST} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        newest = manifest["format"]
        if type(newest) is not int or newest < 1:
            raise MaskFormatError(f"its format is {str(newest)[:80]!r}, not a number")
        if newest > FORMAT:
            raise MaskFormatError(
                f"it has format {newest}, this masksearch {own_version()} reads up to {FORMAT}; "
                f"it was written by {str(manifest.get('versions'))[:200]}: install that version"
            )
        backend = manifest["backend"]
        entries = {
            str(part): (str(entry["file"]), str(entry["sha256"]))
            for part, entry in manifest["masks"].items()
        }
        if not entries or not isinstance(backend, str):
            raise MaskFormatError("it names no mask")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = error if isinstance(error, MaskFormatError) else repr(error)
        raise MaskFormatError(f"{path} cannot be used: {said}") from error
    return {part: checked(folder, *entry) for part, entry in entries.items()}, backend


def checked(folder: Path, name: str, digest: str) -> AnyMask:
    """The mask of one file, whose bytes are those that the manifest says."""
    path = folder / name
    if Path(name).name != name or "\\" in name:
        raise MaskFormatError(
            f"{folder / MANIFEST} names {name!r}, which is not a file of that folder; the folder "
            "was edited or comes from elsewhere, do not use it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {MANIFEST} names this mask file, but it is missing")
    if not inside(folder, path.resolve()):
        raise MaskFormatError(f"{path} is a link to {path.resolve()}, outside its folder")
    if sha256(path) != digest:
        raise MaskFormatError(
            f"{path} was changed or damaged since it was saved: its SHA-256 is not the one in "
            f"{MANIFEST}; take both files from the same save"
        )
    return load_mask(path)


def inside(folder: Path, path: Path) -> bool:
    """Whether a file lies in the folder or, for a snapshot in the Hub's cache, in its blobs."""
    own = folder.resolve()
    cached = own.parent.name == "snapshots" and path.parent == own.parents[1] / "blobs"
    return path.parent == own or cached
