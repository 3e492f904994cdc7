"""The masks in a model's folder: one file for each part, and a manifest with their SHA-256.

`masksearch.json`:

    {"format": 1,
     "model_class": "BertModel",
     "build": {"options": {"add_pooling_layer": false}},           # `models.rebuilt.Build`
     "backend": "auto",
     "masks": {"self": {"file": "mask.json", "sha256": "..."}},    # part -> file
     "files": ["config.json", "mask.json", "model.safetensors"],   # of this save
     "model": {"config.json": "...", "model.safetensors": "..."},  # file -> SHA-256
     "versions": {"masksearch": "...", "torch": "...", "transformers": "..."}}

`build` and `model` may be missing, as in folders of earlier versions: then the model is built from
its configuration alone, and its files are not checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from masksearch.attention.probe import SELF
from masksearch.errors import DataError, MaskFormatError
from masksearch.masks.content import ContentMask
from masksearch.masks.core import Mask
from masksearch.masks.lower import load_mask, save_mask
from masksearch.models.checkpoints import CONFIG, weight_files
from masksearch.models.folders import MANIFEST, settle
from masksearch.models.rebuilt import Build
from masksearch.study.records import own_version

FORMAT = 1  # of the manifest
LARGEST = 1 << 20  # bytes of a manifest that is read
AnyMask = Mask | ContentMask


@dataclass(frozen=True)
class Saved:
    """What a manifest says, with the masks.

    Args:
        masks: Part -> mask.
        backend: That was asked for.
        model_class: Name of the model's class.
        build: How the model was built.
        files: Configuration and weights -> SHA-256 in hex; empty where it was not recorded.
    """

    masks: dict[str, AnyMask]
    backend: str
    model_class: str
    build: Build
    files: dict[str, str]


def write_masks(
    masks: Mapping[str, AnyMask],
    folder: Path,
    *,
    model_class: str,
    backend: str = "auto",
    build: Build | None = None,
    others: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
) -> None:
    """Writes a file for each mask, then the manifest.

    Args:
        masks: Part -> mask.
        folder: Made where it is missing.
        model_class: Name of the model's class in transformers.
        backend: As in `masksearch.attach`.
        build: How the model was built; default: from its configuration alone.
        others: Names of the model's own files in the same save.
        files: What `model_files` says of them; default: not recorded, so not checked.
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
        "build": (build or Build()).written(),
        "backend": backend,
        "masks": entries,
        "files": sorted({*others, *(entry["file"] for entry in entries.values())}),
        "model": dict(files or {}),
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


def model_files(folder: Path) -> dict[str, str]:
    """The files from which a model is read, with their SHA-256 in hex.

    Reads them whole, in pieces: about a second for each 0.5 to 2 GB of weights.

    Raises:
        DataError: If weights are missing.
    """
    return {path.name: sha256(path) for path in [folder / CONFIG, *weight_files(folder)]}


def read_manifest(folder: Path) -> Saved:
    """The masks of a folder by part, and what else its manifest says.

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
        build = Build.read(manifest.get("build", {}))
        files = {str(name): str(digest) for name, digest in manifest.get("model", {}).items()}
        entries = {
            str(part): (str(entry["file"]), str(entry["sha256"]))
            for part, entry in manifest["masks"].items()
        }
        if not entries or not isinstance(backend, str):
            raise MaskFormatError("it names no mask")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = error if isinstance(error, MaskFormatError) else repr(error)
        raise MaskFormatError(f"{path} cannot be used: {said}") from error
    masks = {part: checked(folder, *entry) for part, entry in entries.items()}
    return Saved(masks, backend, str(manifest.get("model_class")), build, files)


def check_config(folder: Path, saved: Saved, remedy: str) -> None:
    """Whether the configuration is that of the save; one that is missing is not asked for.

    Every save lays it out in its own way, so that this shows a later save by transformers, which
    leaves the masks of the earlier one in place.

    Raises:
        DataError: If it is not.
    """
    path = folder / CONFIG
    if saved.files and path.is_file() and sha256(path) != saved.files.get(CONFIG):
        raise changed(path, remedy)


def check_files(folder: Path, saved: Saved, remedy: str) -> None:
    """Whether configuration and weights are those of the save. Reads them whole, in pieces.

    Raises:
        DataError: If they are not, or weights are missing.
    """
    check_config(folder, saved, remedy)
    if not saved.files:
        return
    for path in weight_files(folder):
        if path.name not in saved.files or sha256(path) != saved.files[path.name]:
            raise changed(path, remedy)


def changed(path: Path, remedy: str) -> DataError:
    """The error for a file of the model that is not the one that was saved."""
    return DataError(
        f"{path} is not the file that masksearch saved together with this mask (its SHA-256 is "
        f"not the one in {MANIFEST}): it was damaged or exchanged, or the model was written again "
        "by something else, such as model.save_pretrained(folder) of transformers, which leaves "
        "the earlier mask there. Save model and mask together: ms.save_pretrained(model, folder); "
        f"where the model was changed on purpose and this mask belongs to it, {remedy}"
    )


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


def saved_masks(folder: Path | str, *, verify: bool = True) -> dict[str, AnyMask]:
    """The masks of a folder that `save_pretrained` wrote; weights are not read.

    Args:
        folder: Holds `masksearch.json` and its mask files; the model may be missing.
        verify: Whether a `config.json` there must be the one that was saved with the masks:
            another one says that the model was written again, by something that leaves earlier
            masks in place.

    Returns:
        Part -> mask, as `masksearch.attach` takes them; the part of a plain model is `"self"`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If one is damaged, changed, or of a newer version.
        DataError: If the configuration is not that of the save.
    """
    folder = Path(folder).expanduser()
    saved = read_manifest(folder)
    if verify:
        check_config(
            folder, saved, "attach it so: ms.attach(model, ms.saved_masks(folder, verify=False))"
        )
    return saved.masks
