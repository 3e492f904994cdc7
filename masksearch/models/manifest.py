"""The masks of a saved folder: which it names, which lie there, and to what weights they belong.

Three places say which masks a model was trained under:

    config.json         names each mask and its digest, for whoever opens the folder without
                        masksearch; also in checkpoints that were written by transformers alone
    mask.json, ..       the masks
    masksearch.json     the manifest: the mask files and the weights, with their SHA-256

`check_masks` reads the first two, `verify` the weights as well.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksearch.attention.attach import ENTRY
from masksearch.errors import DataError, MaskFormatError
from masksearch.masks import Mask
from masksearch.masks.files import load_mask

MANIFEST = "masksearch.json"
FORMAT = 1  # of the manifest
VERSION = str(vars(sys.modules["masksearch"])["__version__"])
NO_POOLER = {"add_pooling_layer": False}  # the one argument of a model's class that is stored
WEIGHTS = re.compile(
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


@dataclass(frozen=True)
class Verification:
    """What `verify` has found; `print` it.

    Args:
        folder: The folder.
        masks: Part -> mask; empty for a dense model.
        weights: `"as saved"`: they are those that the masks were saved with; `"not recorded"`:
            the folder comes from an earlier version, or is dense.
    """

    folder: Path
    masks: dict[str, Mask]
    weights: str

    def __str__(self) -> str:
        if not self.masks:
            return f"{self.folder}: a dense model; no mask lies there, and none is named"
        named = ", ".join(f"{part}: {mask!s:.80}" for part, mask in self.masks.items())
        return f"{self.folder}: {named}; weights {self.weights}"


def verify(folder: Path | str) -> Verification:
    """Whether a folder holds the masks that its model was trained under, and its own weights.

    Args:
        folder: What `save_pretrained`, a `Trainer` with `MaskCallback`, or transformers wrote.

    Returns:
        The masks (none for a dense model), and whether the weights are those they were saved
        with. All files are read, nothing is loaded.

    Raises:
        FileNotFoundError: If the folder, or a mask that it names, is missing.
        MaskFormatError: If a mask is another one than is named, damaged, or of a newer version.
        DataError: If the weights are others than those the masks were saved with.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    masks = check_masks(folder)
    recorded = read_manifest(folder)["weights"] if masks else {}
    if recorded and recorded != (found := hash_weights(folder)):
        names = sorted(
            name for name in {*recorded, *found} if recorded.get(name) != found.get(name)
        )
        raise DataError(
            f"{folder}: {names[0]} is not what the mask was saved with: its SHA-256 is not the "
            f"one in {MANIFEST}; save weights and mask together, ms.save_pretrained(model, "
            "folder), or with ms.MaskCallback in a Trainer"
        )
    return Verification(folder, masks, "as saved" if recorded else "not recorded")


def check_masks(folder: Path) -> dict[str, Mask]:
    """The masks of a folder, which are those that it names; empty for a dense model.

    Raises:
        FileNotFoundError: If a mask that `config.json` names is missing.
        MaskFormatError: If it is another one, damaged, or of a newer version.
    """
    named = named_masks(folder)
    if not (folder / MANIFEST).is_file():
        if not named:
            return {}
        listed = ", ".join(
            f"{each['mask']} (digest {each['digest']:.8})" for each in named.values()
        )
        raise FileNotFoundError(
            f"{folder}: config.json names a mask, {listed:.300}, and no {MANIFEST} lies there: a "
            "program without masksearch wrote it, or the save was interrupted. Without the mask "
            "it is another model: train with ms.MaskCallback(mask), or open it with transformers, "
            "ms.attach(model, mask) and ms.save_pretrained(model, folder); where it is meant to "
            f"be dense, remove {ENTRY!r} from config.json"
        )
    masks = saved_masks(folder)
    digests = {part: mask.digest for part, mask in masks.items()}
    if named and {part: each["digest"] for part, each in named.items()} != digests:
        listed = ", ".join(each["mask"] for each in named.values())
        raise MaskFormatError(
            f"{folder}: config.json names {listed:.200}, and the mask that lies there is "
            f"{', '.join(map(str, masks.values())):.200}; take both files from the same save"
        )
    return masks


def named_masks(folder: Path) -> dict[str, dict[str, str]]:
    """What `config.json` says of masks: part -> expression and digest; empty where nothing.

    Raises:
        MaskFormatError: If it cannot be used.
    """
    if not (folder / "config.json").is_file():
        return {}
    entry = read_json(folder / "config.json").get(ENTRY)
    if entry is None:
        return {}
    try:
        return {
            str(part): {"mask": str(each["mask"])[:200], "digest": str(each["digest"])}
            for part, each in entry["masks"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise MaskFormatError(
            f"{folder}/config.json: {ENTRY!r} names no masks: {error!r}"
        ) from error


def hash_weights(folder: Path) -> dict[str, str]:
    """Weight file -> SHA-256, in hexadecimal digits."""
    found = {}
    for path in sorted(each for each in folder.iterdir() if WEIGHTS.fullmatch(each.name)):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint as plain data.

    Raises:
        DataError: If it is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(
            f"{path.parent} holds no {path.name}; give the folder that save_pretrained wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


def saved_masks(folder: Path | str) -> dict[str, Mask]:
    """The masks of a folder that `save_pretrained` wrote; weights are not read.

    Args:
        folder: Holds `masksearch.json` and its mask files; the model may be missing.

    Returns:
        Part -> mask, as `masksearch.attach` takes them; the part of a plain model is `"self"`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If one is damaged, changed, or of a newer version.
    """
    folder = Path(folder).expanduser()
    masks = {}
    for part, entry in read_manifest(folder)["masks"].items():
        path = folder / entry["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: {MANIFEST} names this mask file, it is missing")
        if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            raise MaskFormatError(
                f"{path} was changed or damaged since it was saved: its SHA-256 is not the one "
                f"in {MANIFEST}; take both files from the same save"
            )
        masks[part] = load_mask(path)
    return masks


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `masksearch.json` of a folder says: backend, model_class, options, masks, weights.

    Raises:
        FileNotFoundError: If the folder or its manifest is missing.
        MaskFormatError: If it is damaged, or of a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no folder, or holds no {MANIFEST}: no mask was saved there by "
            "masksearch, or the save was interrupted; load the model with transformers and attach "
            "a mask: ms.attach(model, mask)"
        )
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            raise ValueError(
                f"it has format {stored['format']!r:.80}, this masksearch {VERSION} reads "
                f"{FORMAT}; it was written by {stored.get('versions')!s:.200}"
            )
        names = [str(entry["file"]) for entry in stored["masks"].values() if entry["sha256"]]
        if odd := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {odd[0]!r:.80}, which is not a file of that folder")
        options = stored.get("build", {}).get("options", {})
        if not names or options not in ({}, NO_POOLER):
            raise ValueError(f"it names no mask, or builds the model with {options!r:.80}")
        found = {name: stored[name] for name in ("backend", "model_class", "masks")}
        found["weights"] = dict(stored.get("weights", {}))  # older ones record none
        found["adapter"] = stored.get("adapter", False) is True
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error if type(error) is ValueError else repr(error)
        raise MaskFormatError(f"{path} cannot be used: {why}") from error
    return {**found, "options": options}
