"""The folder of a model: its configuration and weights, and the masks that it was trained under.

    name, folder = find_folder("google-bert/bert-base-uncased")    # or a folder
    model, report = read_model(AutoModelForMaskedLM, folder)
    verify(folder)                                                 # part -> mask

Weights are read from safetensors only, and no code that comes with a checkpoint is run. Three
files say which masks a model was trained under:

    config.json         names each mask and its digest, and masksearch's attention, which
                        transformers alone refuses; also in checkpoints that it wrote by itself
    mask.json, ..       the masks
    masksearch.json     the manifest: the mask files with their digests, the weights with their
                        SHA-256
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HTTPError, StrictDataclassError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as messages

from masksearch.attention.interface import ENTRY, KEY, NAME
from masksearch.attention.own_code import OWN_KEY, has_adapter
from masksearch.attention.probe import refuse_family
from masksearch.errors import DataError, LengthError, MaskFormatError
from masksearch.masks import Mask
from masksearch.masks.shape import Shape
from masksearch.masks.text import SAVED, load_mask

SECONDS = 5.0  # for the Hub's first answer
# What is downloaded: no pickle, no code.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FILES = [
    *("*.json", "*.txt", "*.model", "*.jinja"),
    *("model*.safetensors", "mask*.safetensors", ADAPTER_WEIGHTS),
]
CONFIG = "config.json"
UNREADABLE = (  # what transformers raises for files that it cannot read
    SafetensorError,
    StrictDataclassError,
    OSError,
    ValueError,
    TypeError,
    RuntimeError,
    LookupError,
    AttributeError,
)
MANIFEST = SAVED
FORMAT = 1  # of the manifest
VERSION = str(vars(sys.modules["masksearch"])["__version__"])
NO_POOLER = {"add_pooling_layer": False}  # the one argument of a model's class that is stored
WEIGHTS = re.compile(
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
OTHERS = ("adapter_config.json", "shard-*.safetensors")  # transformers prefers their weights


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses transformers' messages and bars; the global generator stays as it was."""
    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()
    messages.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()


# -- files -------------------------------------------------------------------------------------
def find_folder(name_or_folder: str | Path) -> tuple[str, Path]:
    """A checkpoint's name (an absolute folder, or its Hub name), and the folder of its files.

    Raises:
        DataError: If it is neither on disk nor can be downloaded.
    """
    path, name = Path(name_or_folder).expanduser(), str(name_or_folder)
    if path.is_dir():
        return str(path.resolve()), path.resolve()
    local = name.startswith((".", "~", os.sep)) or name.endswith(os.sep) or name.count("/") > 1
    if local or isinstance(name_or_folder, Path) or path.exists():  # no name of the Hub
        raise DataError(
            f"no such folder: {path}; give a folder with config.json and model.safetensors, "
            "or a name on the Hugging Face Hub such as google-bert/bert-base-uncased"
        )
    return name, download_checkpoint(name)


def download_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub checkpoint, from the cache where it is whole, else from the Hub.

    One try: a Hub that cannot be reached is said at once.

    Raises:
        DataError: If it is neither in the cache nor can be downloaded.
    """
    request: dict[str, Any] = {"repo_id": name, "allow_patterns": FILES}
    with suppress(OSError, ValueError):  # not in the cache, or not whole
        folder = Path(snapshot_download(**request, revision=revision, local_files_only=True))
        if not (folder / ADAPTER_WEIGHTS).is_file():
            find_files(folder)
        return folder
    if constants.HF_HUB_OFFLINE:
        raise DataError(f"no such folder: {name!r}; HF_HUB_OFFLINE is set, so no Hub is asked")
    try:
        about = HfApi().model_info(name, revision=revision, timeout=SECONDS)  # one try, no retries
        return Path(snapshot_download(**request, revision=about.sha))
    except (OSError, ValueError, HTTPError) as error:  # HTTPError: of the Hub client's transport
        raise DataError(
            f"no such folder: {name!r}, and the Hugging Face Hub gave no checkpoint of that name "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); without a network, "
            "give a local folder with config.json and model.safetensors"
        ) from error


def find_files(folder: Path) -> list[Path]:
    """The configuration and the safetensors files of a checkpoint.

    Raises:
        DataError: If one is missing, or transformers would read other weights than those.
    """
    files = [folder / CONFIG, folder / "model.safetensors"]
    if (folder / OTHERS[0]).is_file() and not files[1].is_file():
        raise DataError(
            f"{folder} holds an adapter (adapter_config.json), not a whole model; write one: "
            "ms.save_pretrained(model.merge_and_unload(), folder)"
        )
    others = [path.name for pattern in OTHERS for path in sorted(folder.glob(pattern))]
    if read_json(folder / CONFIG).get("transformers_weights") is not None:
        others.append("transformers_weights in config.json")
    if others:
        raise DataError(
            f"{folder} holds {others[0]}, for which transformers would take other weights than "
            "those of model.safetensors and its shards; remove it"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not files[1].is_file():
        names = dict(read_json(index).get("weight_map") or {}).values()
        shards = {Path(str(name)).name for name in names}
        files[1:] = [index, *(folder / name for name in sorted(shards))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise DataError(
            f"{folder} holds no {missing[0]}; give the whole folder that save_pretrained wrote, "
            "or a Hub checkpoint that has safetensors. Pickled weights (*.bin, *.pt) can run any "
            "code when they are read, so they are refused; where you trust their source, convert "
            "them: AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return files


def hash_files(folder: Path) -> str:
    """16 hexadecimal digits of SHA-256 over names and bytes of configuration and weights."""
    total = hashlib.sha256()
    for path in find_files(folder):
        total.update(f"{path.name}|{hash_file(path)}|".encode())
    return total.hexdigest()[:16]


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read once for each size and time of its last change."""
    state = path.stat()
    return _hash_bytes(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_bytes(path: Path, size: int, changed: int) -> str:
    """The same; size and time make it read again what has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(
    cls: Any, folder: Path, *, new_head: bool = False, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A folder's model in that class, and transformers' report of what was missing or left over.

    Args:
        cls: With a `from_pretrained`.
        folder: Holds configuration and weights; only safetensors are read, and no code is run.
        new_head: Whether weights of a head or a pooling layer may be missing or of another
            size: transformers draws them. Those of the body may not.
        options: Of `from_pretrained`.

    Raises:
        DataError: If they cannot be read, do not fit, are not in safetensors files, or are not
            finite.
        AttachError: If the class takes no mask.
    """
    find_files(folder)
    fixed = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    report = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        model, loaded = cls.from_pretrained(folder, **options, **fixed, **report)
    except UNREADABLE as error:
        raise DataError(
            f"{folder}: the model cannot be read as {cls.__name__}: {error}; the files are "
            "damaged, not whole or of different models, or an option does not fit them"
        ) from error
    unfit = {name: "missing" for name in loaded["missing_keys"]}
    for name, stored, expected in loaded["mismatched_keys"]:
        unfit[name] = f"stored {list(stored)}, expected {list(expected)}"
    if new_head:
        body = "" if model.base_model is model else f"{model.base_model_prefix}."
        unfit = {n: why for n, why in unfit.items() if n.startswith(body) and "pooler" not in n}
    if unfit and not (model._supports_sdpa or has_adapter(model.config)):
        raise refuse_family(type(model).__name__)
    if unfit:
        raise DataError(
            f"{folder}: the weights do not fit {type(model).__name__} in {len(unfit)} tensors, "
            f"such as {min(unfit)} ({unfit[min(unfit)]}); take configuration and weights from the "
            "same save, or give model_class= for a class with a new head"
        )
    for name, weight in model.named_parameters():
        plain = type(weight) is torch.nn.Parameter and weight.element_size() > 1  # not quantised
        if plain and not weight.is_meta and not weight.isfinite().all():
            what = "NaN" if weight.isnan().any() else "infinity"
            raise DataError(
                f"the weights of {folder} hold {what} in {name}; take another checkpoint, or "
                "train this one again at a lower rate"
            )
    return model, loaded


def read_config(path: Path) -> PreTrainedConfig:
    """The configuration of a folder, or in a file, of the model without masks.

    Raises:
        DataError: If it cannot be read.
    """
    fixed = {"trust_remote_code": False, "local_files_only": True}
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, **fixed)
    except UNREADABLE as error:
        where, why = path / CONFIG if path.is_dir() else path, str(error)
        if "trust_remote_code" in why:
            why = "it names code of its own, which is never run; give a model of transformers"
        raise DataError(f"{where} cannot be read: {why}") from error
    if config._attn_implementation in (NAME, OWN_KEY):
        config._attn_implementation = None
    vars(config).pop(ENTRY, None)
    return config


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint, described; the weights stay on disk until they are asked for.

    Pickles as these few fields. A process that unpickles it finds the weights in the same folder
    (a shared file system, or a copy), or under the same name and revision on the Hub; weights
    that are not those of `digest` are refused.

    Args:
        name: What it was opened as: an absolute folder, or a Hub name.
        folder: Where its files were found.
        digest: Hash of the configuration's and the weights' bytes.
        architecture: The configuration's `model_type`, such as `"bert"`.
        layers: Attention layers with weights of their own (1 for ALBERT, which repeats one).
        heads: Query heads of a layer.
        width: Of the hidden states.
        positions: Longest sequence, in tokens, special ones included.
        vocabulary: Rows of the token embeddings.
    """

    name: str
    folder: Path
    digest: str
    architecture: str
    layers: int
    heads: int
    width: int
    positions: int
    vocabulary: int

    def shape(self, length: int) -> Shape:
        """The sizes that a mask is lowered to at that length.

        Raises:
            LengthError: If the model has fewer positions.
        """
        check_positions(self.name, self.positions, length)
        return Shape(length, self.layers, self.heads)

    def check_tokens(self, vocabulary: int, pad: int | None = None) -> None:
        """Whether a tokenizer fits the embeddings.

        Args:
            vocabulary: Number of the tokenizer's ids.
            pad: The tokenizer's padding id.

        Raises:
            DataError: If it has more ids than the model.
        """
        if vocabulary > self.vocabulary:
            self.refuse_tokens(f"has {vocabulary:,} ids, {self.name} embeds {self.vocabulary:,}")

    def refuse_tokens(self, why: str) -> NoReturn:
        """Raises the DataError of a tokenizer that does not fit."""
        raise DataError(
            f"the tokenizer {why}; use the checkpoint's own: leave tokenizer out "
            "(tokenizer=None of an evaluator, tokenizer=pretrained.tokenizer_source of a corpus)"
        )

    @property
    def tokenizer_source(self) -> str:
        """The argument of `Corpus.load(tokenizer=...)`: the folder.

        Raises:
            DataError: If the folder holds no tokenizer.
        """
        folder = self.locate()
        names = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json", "*.model")
        if not any(any(folder.glob(name)) for name in names):
            raise DataError(
                f"{folder} holds no tokenizer ({', '.join(names)}); copy the one that the "
                "model was trained with into it: another one's ids mean other words"
            )
        return str(folder)

    def locate(self) -> Path:
        """The folder of the files in this process.

        Raises:
            DataError: If they are neither there nor on the Hub, or have changed.
        """
        folder = self.folder
        if not folder.is_dir():
            if Path(self.name).is_absolute():
                raise DataError(
                    f"no such folder on this machine: {folder}; put the checkpoint on a file "
                    "system that every machine sees, or copy it to the same place"
                )
            folder = download_checkpoint(self.name, revision=folder.name)
        if hash_files(folder) != self.digest:
            raise DataError(
                f"{folder} has changed since {self.name} was opened; open it again, in a new "
                "process"
            )
        return folder


def check_positions(name: str, positions: int, length: int) -> None:
    """Raises LengthError where a model has fewer positions than a length."""
    if length > positions:
        raise LengthError(
            f"{name} has {positions} positions, asked for {length}; "
            f"use a length of at most {positions}"
        )


# -- the masks of a folder ---------------------------------------------------------------------
def verify(folder: Path | str) -> dict[str, Mask]:
    """Checks that a folder's weights and masks belong together, as loading does; returns masks.

    Args:
        folder: What `save_pretrained`, a `Trainer` with `MaskCallback`, or transformers wrote.

    Returns:
        Part -> mask; empty for a dense model. All files are read, nothing is loaded.

    Raises:
        FileNotFoundError: If the folder, or a mask that it names, is missing.
        MaskFormatError: If a mask is another one than is named, damaged, or of a newer version.
        DataError: If the weights are others than those the masks were saved with.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    masks = check_masks(folder)
    if masks:
        check_weights(folder)
    return masks


def check_weights(folder: Path) -> None:
    """Whether the weights of a folder are those that its masks were saved with.

    Raises:
        DataError: If they are others, by the SHA-256 that the manifest names.
    """
    recorded, present = read_manifest(folder)["weights"], hash_weights(folder)
    if differ := sorted(n for n in {*recorded, *present} if recorded.get(n) != present.get(n)):
        raise DataError(
            f"{folder}: {differ[0]} is not what the mask was saved with: its SHA-256 is not the "
            f"one in {MANIFEST}; save weights and mask together, ms.save_pretrained(model, "
            "folder), or with ms.MaskCallback in a Trainer"
        )


def check_masks(folder: Path) -> dict[str, Mask]:
    """The masks of a folder, which are those that it names; empty for a dense model.

    Raises:
        FileNotFoundError: If a mask that `config.json` names is missing.
        MaskFormatError: If it is another one, damaged, or of a newer version.
    """
    path = folder / CONFIG
    entry = read_json(path).get(ENTRY) if path.is_file() else None
    try:
        named = {} if entry is None else dict(entry["masks"])
        digests = {part: str(each["digest"]) for part, each in named.items()}
        texts = [f"{each['mask']!s:.200} (digest {each['digest']:.8})" for each in named.values()]
    except (KeyError, TypeError, ValueError) as error:
        raise MaskFormatError(f"{path}: {ENTRY!r} names no masks: {error!r}") from error
    listed = f"{', '.join(texts):.300}"
    if not (folder / MANIFEST).is_file():
        if not named:
            return {}
        raise FileNotFoundError(
            f"{folder}: config.json names a mask, {listed}, and no {MANIFEST} lies there: a "
            "program without masksearch wrote it, or the save was interrupted. Without the mask "
            "it is another model: train with ms.MaskCallback(mask), or open it with transformers "
            '(attn_implementation="sdpa"), ms.attach(model, mask) and ms.save_pretrained(model, '
            f"folder); where it is meant to be dense, take {ENTRY!r} and {KEY!r} from config.json"
        )
    masks = saved_masks(folder)
    if named and digests != {part: mask.digest for part, mask in masks.items()}:
        raise MaskFormatError(
            f"{folder}: config.json names {listed}, and the mask that lies there is "
            f"{', '.join(map(str, masks.values())):.200}; take both files from the same save"
        )
    return masks


def hash_weights(folder: Path) -> dict[str, str]:
    """Weight file -> SHA-256, in hexadecimal digits."""
    files = sorted(path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name))
    return {path.name: hash_file(path) for path in files}


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file of a checkpoint as plain data, an object or a list.

    Raises:
        DataError: If it is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} holds no {path.name}; give the folder of save_pretrained")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {'object' if kind is dict else 'list'}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return content


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
        masks[part] = load_mask(path)
        if masks[part].digest != entry["digest"]:
            raise MaskFormatError(
                f"{path} was changed since it was saved: {masks[part]!s:.80} has another digest "
                f"than {MANIFEST} names; take both files from the same save"
            )
    return masks


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads `masksearch.json` of a folder: what `save_pretrained` wrote, but the versions.

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
        names = [str(entry["file"]) for entry in stored["masks"].values() if entry["digest"]]
        if odd := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {odd[0]!r:.80}, which is not a file of that folder")
        options = stored["options"]
        if not names or options not in ({}, NO_POOLER):
            raise ValueError(f"it names no mask, or builds the model with {options!r:.80}")
        drops = stored.get("drop_tokens", False)
        if not isinstance(drops, int) or drops < 0:
            raise ValueError(
                f"drop_tokens is {drops!r:.80}, and neither true nor a number of rows"
            )
        fields = ("options", "adapter", "backend", "model_class", "masks")
        read = {name: stored[name] for name in fields} | {"weights": dict(stored["weights"])}
        return read | {"drop_tokens": drops}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error if type(error) is ValueError else repr(error)
        raise MaskFormatError(f"{path} cannot be used: {why}") from error
