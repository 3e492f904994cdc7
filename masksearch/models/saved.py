"""A model and the masks on it in one folder, which transformers reads as well.

    ms.attach(model, mask)
    ms.save_pretrained(model, "runs/model")
    model = ms.load_pretrained("runs/model")            # weights and mask
    ms.attach(BertModel.from_pretrained("runs/model"), "runs/model")     # the same in two steps

Beside the files of the model lie one mask file for each part and `masksearch.json`, which names
them with their SHA-256. Nothing in such a folder is run: no pickle is read, and the model's class
is one of transformers or the one that the caller gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from masksearch.errors import (
    AttachError,
    DataError,
    HeadCountError,
    LayerCountError,
    UnknownNameError,
)
from masksearch.models.attach import attach, attached
from masksearch.models.checkpoint_files import weight_files
from masksearch.models.export import hugging_face_model
from masksearch.models.folders import replaced, write_model
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.manifest import AnyMask, read_masks, write_masks
from masksearch.models.pretrained import quiet
from masksearch.models.probe import pretrained
from masksearch.models.slots import ATTACHMENT, SLOT


def save_pretrained(model: nn.Module, folder: Path | str) -> Path:
    """Writes a model and the masks on it: what `load_pretrained` opens, and transformers too.

    A killed call leaves the folder as it was or, once everything is written, as it will be: the
    next reader completes it. A folder `.saving-...` inside is what such a call has left; a save
    removes it after a day. In a run of several processes, one calls.

    Args:
        model: A Hugging Face model with a mask (`masksearch.attach`), which stays on it. A
            `MaskedLanguageModel` is written as its architecture's model in transformers.
        folder: Made where it is missing; files of an earlier model there are replaced.

    Returns:
        The folder.

    Raises:
        AttachError: If no mask is attached, gates are, or the model is not transformers' own.
        OSError: If the folder cannot be written, such as on a full disk; it is then as before.
    """
    folder = Path(folder)
    masks, backend = masks_of(model)
    whole = hugging_face_model(model) if isinstance(model, MaskedLanguageModel) else model
    with replaced(folder) as aside:
        write_model(cast(PreTrainedModel, whole), aside)
        if not (aside / "config.json").is_file():
            raise AttachError(
                f"{type(whole).__name__}.save_pretrained wrote no whole model (an adapter "
                "alone?); merge the adapter into it first"
            )
        weight_files(aside)  # at least one, and no pickle
        written = [path.name for path in aside.iterdir()]
        name = type(whole).__name__
        write_masks(masks, aside, model_class=name, backend=backend, others=written)
    return folder


def load_pretrained(
    folder: Path | str,
    *,
    model_class: type[PreTrainedModel] | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Opens what `save_pretrained` wrote: the model with its masks, in eval mode.

    Args:
        folder: Holds `config.json`, `*.safetensors`, `masksearch.json` and its mask files.
        model_class: Another class than the stored one, for example with a head for a task:
            `transformers.BertForSequenceClassification`. Weights of heads and pooling layers
            that are not stored are drawn anew, and reported by transformers.
        dtype: Of the weights; default: as stored.
        backend: As in `masksearch.attach`; default: as stored.
        inputs: As in `masksearch.attach`.
        trust_remote_code: Must be off: code in a folder is never run.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If manifest or masks are damaged, changed, or of a newer version.
        DataError: If configuration or weights are missing, damaged, pickled, or do not fit.
        AttachError: If the class is unknown, or no mask can be put on the model.
        HeadCountError, LayerCountError: If masks and model do not fit.
    """
    if trust_remote_code:
        raise ValueError(
            "code that comes with a model is never run, got trust_remote_code=True; install or "
            "write the class yourself and give it: load_pretrained(folder, model_class=MyModel)"
        )
    folder = Path(folder).expanduser()
    masks, stored = read_masks(folder)
    cls = named_class(folder) if model_class is None else model_class
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise TypeError(
            f"model_class is a class of Hugging Face models such as BertModel, got {cls!r}"
        )
    model, missing = loaded(cls, folder, dtype, new_head=model_class is not None)
    try:
        attach(model, masks, inputs, backend or stored)
    except (AttachError, HeadCountError, LayerCountError, UnknownNameError) as error:
        raise type(error)(f"{folder}: {error}") from error
    if model_class is not None:
        missing = damaged_keys(model, missing)
    other = "" if model_class else ", or give model_class= for a class with a new head"
    refuse_missing(folder, cls, missing, other)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def saved_masks(folder: Path | str) -> dict[str, AnyMask]:
    """The masks of a folder that `save_pretrained` wrote.

    Returns:
        Part -> mask, as `masksearch.attach` takes them; the part of a plain model is `"self"`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If one is damaged, changed, or of a newer version.
    """
    return read_masks(Path(folder).expanduser())[0]


# -- writing -----------------------------------------------------------------------------------
def masks_of(model: nn.Module) -> tuple[dict[str, AnyMask], str]:
    """What is attached to a model that can be saved, and the backend asked for."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"save_pretrained takes a model, got {name}")
    found = attached(model)
    if not isinstance(model, PreTrainedModel | MaskedLanguageModel):
        inner = [
            (path, type(m).__name__) for path, m in model.named_modules() if m in roots(model)
        ]
        if not inner:
            raise AttachError(f"{name} contains no Hugging Face model (PreTrainedModel)")
        path, kind = inner[0]
        first = f"ms.detach(model); ms.attach(model.{path}, mask); " if found else ""
        raise AttachError(
            f"{name} is no Hugging Face model, so nothing could load it again; save the {kind} "
            f"inside: {first}ms.save_pretrained(model.{path}, folder)"
        )
    if not found:
        if any(SLOT in module.__dict__ for module in model.modules()):
            raise AttachError(
                f"the mask on this {name} was attached through another module; attach it to the "
                "module that is saved"
            )
        raise AttachError(
            f"no mask is attached to this {name}; attach one first, or save the weights alone "
            "with model.save_pretrained(folder)"
        )
    for part, what in found.items():
        if not isinstance(what, AnyMask):
            raise AttachError(
                f"gates are attached to {part!r} of this {name}, and only masks are saved with a "
                "model; cut a mask from the gates and attach that: ms.attach(model, "
                "result.mask(sparsity=0.9)); result.save(path) keeps the gates"
            )
    (backend,) = {slot.backend for slot in model.__dict__[ATTACHMENT].slots.values()}
    return found, backend


def roots(model: nn.Module) -> list[nn.Module]:
    """The outermost Hugging Face models inside a module."""
    return cast("list[nn.Module]", pretrained(model))


# -- reading -----------------------------------------------------------------------------------
def named_class(folder: Path) -> type[PreTrainedModel]:
    """The class of transformers that `config.json` names."""
    names = configuration(folder).get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise DataError(
            f"{folder / 'config.json'} names no class in 'architectures'; give it: "
            "load_pretrained(folder, model_class=...)"
        )
    name = names[0]
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise AttachError(
            f"{folder / 'config.json'} names the class {name[:80]!r}, which is not a model of "
            f"transformers {transformers.__version__}, and code from a folder is never run; give "
            "your own class: load_pretrained(folder, model_class=...)"
        )
    return found


def configuration(folder: Path) -> dict[str, Any]:
    """`config.json` as plain data."""
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(
            f"{folder} holds no config.json; give the folder that save_pretrained wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return found


def loaded(
    cls: type[PreTrainedModel], folder: Path, dtype: torch.dtype | None, *, new_head: bool
) -> tuple[PreTrainedModel, set[str]]:
    """Configuration and weights in that class, and names of the weights that are not stored.

    Raises:
        DataError: If they cannot be read, do not fit, or are not in safetensors files.
    """
    from huggingface_hub.errors import StrictDataclassError

    if configuration(folder).get("transformers_weights") is not None:
        raise DataError(
            f"{folder / 'config.json'} names weights of its own choice (transformers_weights); "
            "only model.safetensors and its shards are read, remove that entry"
        )
    weight_files(folder)
    try:
        with nullcontext() if new_head else quiet():  # a new head is drawn, and reported
            found: Any = cls.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",  # never a kernel that the configuration names
                output_loading_info=True,
                dtype="auto" if dtype is None else dtype,
            )
    except (
        SafetensorError,
        StrictDataclassError,
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        KeyError,
        AttributeError,
    ) as error:
        raise DataError(
            f"{folder}: the model cannot be read as {cls.__name__}: {error}; the files are "
            "damaged, or of different models"
        ) from error
    model, report = cast("tuple[PreTrainedModel, dict[str, Any]]", found)
    return model, set(report["missing_keys"])


def refuse_missing(
    folder: Path, cls: type[PreTrainedModel], missing: set[str], remedy: str = ""
) -> None:
    """Refuses weights that are not whole.

    Raises:
        DataError: If a tensor is missing.
    """
    if missing:
        raise DataError(
            f"{folder}: the weights lack {len(missing)} tensors of {cls.__name__}, such as "
            f"{min(missing)}; take configuration and weights from the same save{remedy}"
        )


def damaged_keys(model: PreTrainedModel, missing: set[str]) -> set[str]:
    """Missing weights that no new head or pooling layer explains.

    Those of attention layers that carry a mask, and those of a component of the base model of
    which other weights were stored.
    """
    slots = model.__dict__[ATTACHMENT].slots.values()
    attention = {key for key in missing for slot in slots if key.startswith(f"{slot.name}.")}
    start = "" if model.base_model is model else f"{model.base_model_prefix}."
    parts: dict[str, set[str]] = {}
    for key in model.base_model.state_dict():
        parts.setdefault(key.split(".")[0], set()).add(start + key)
    partly = [keys & missing for keys in parts.values() if not keys <= missing]
    return attention.union(*partly)
