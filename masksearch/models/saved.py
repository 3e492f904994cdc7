"""A model and the masks on it in one folder, which transformers reads as well.

    ms.attach(model, mask)
    ms.save_pretrained(model, "runs/model")
    model = ms.load_pretrained("runs/model")            # weights and mask
    ms.attach(BertModel.from_pretrained("runs/model"), "runs/model")     # the same in two steps

Beside the files of the model lie one mask file for each part and `masksearch.json`, which names
masks, configuration and weights with their SHA-256. Nothing in such a folder is run: no pickle is
read, and the model's class is one of transformers or the one that the caller gives.
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

from masksearch.attention.attach import attach, attached
from masksearch.attention.probe import pretrained
from masksearch.attention.slots import ATTACHMENT, SLOT
from masksearch.errors import (
    AttachError,
    DataError,
    HeadCountError,
    LayerCountError,
    UnknownNameError,
)
from masksearch.models.checkpoints import (
    CONFIG,
    configuration,
    quiet,
    refuse_other_weights,
    weight_files,
)
from masksearch.models.export import hugging_face_model
from masksearch.models.folders import replaced, write_model
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.load_options import (
    checked_entries,
    concrete_class,
    floating_type,
    one_device,
    refuse_options,
)
from masksearch.models.manifest import (
    AnyMask,
    check_files,
    model_files,
    read_manifest,
    write_masks,
)
from masksearch.models.rebuilt import Build, switches


def save_pretrained(model: nn.Module, folder: Path | str) -> Path:
    """Writes a model and the masks on it: what `load_pretrained` opens, and transformers too.

    A killed call leaves the folder as it was or, once everything is written, as it will be: the
    next reader completes it. A folder `.saving-...` inside is what such a call has left; a save
    removes it after a day. In a run of several processes, one calls. The weights are read once
    more for their SHA-256: about a second for each 0.5 to 2 GB.

    Args:
        model: A Hugging Face model with a mask (`masksearch.attach`), which stays on it. A
            `MaskedLanguageModel` is written as its architecture's model in transformers.
        folder: Made where it is missing; files of an earlier model there are replaced.

    Returns:
        The folder.

    Raises:
        AttachError: If no mask is attached, gates are, the model is not transformers' own, or its
            class builds other modules from its configuration than it has.
        OSError: If the folder cannot be written, such as on a full disk; it is then as before.
    """
    folder = Path(folder)
    masks, backend = masks_of(model)
    made = hugging_face_model(model) if isinstance(model, MaskedLanguageModel) else model
    whole = cast(PreTrainedModel, made)
    build = Build.of(whole)
    with replaced(folder) as aside:
        write_model(whole, aside)
        if not (aside / CONFIG).is_file():
            raise AttachError(
                f"{type(whole).__name__}.save_pretrained wrote no whole model (an adapter "
                "alone?); merge the adapter into it first"
            )
        stored = configuration(aside)
        # not the layout of transformers: a later save by it is then seen, whatever it changes
        (aside / CONFIG).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        write_masks(
            masks,
            aside,
            model_class=type(whole).__name__,
            backend=backend,
            build=build,
            others=[path.name for path in aside.iterdir()],
            files=model_files(aside),  # at least one with weights, and no pickle
        )
    return folder


def load_pretrained(
    folder: Path | str,
    *,
    model_class: type[Any] | None = None,
    dtype: torch.dtype | str | None = None,
    backend: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    verify: bool = True,
    device_map: torch.device | str | int | Mapping[str, Any] | None = None,
    torch_dtype: torch.dtype | str | None = None,
    trust_remote_code: bool = False,
    **entries: Any,
) -> PreTrainedModel:
    """Opens what `save_pretrained` wrote: the model with its masks, in eval mode.

    Args:
        folder: Holds `config.json`, `*.safetensors`, `masksearch.json` and its mask files.
        model_class: Another class than the stored one, for example with a head for a task:
            `transformers.BertForSequenceClassification`, or an Auto class such as
            `AutoModelForSequenceClassification`. Weights of heads and pooling layers that are
            not stored are drawn anew, and reported by transformers.
        dtype: Of the weights; default: as stored.
        backend: As in `masksearch.attach`; default: as stored.
        inputs: As in `masksearch.attach`.
        verify: Whether configuration and weights must be those that were saved with the mask, by
            their SHA-256. Weights are read whole for it, in pieces: about a second for each 0.5
            to 2 GB. Off for files that were changed on purpose; masks are checked always.
            Folders of earlier versions, which record none, open as they are.
        device_map: One device, such as `"cuda:0"`; default: the CPU.
        torch_dtype: Earlier name of `dtype`.
        trust_remote_code: Must be off: code in a folder is never run.
        entries: Entries of the configuration that are changed, such as `num_labels=3`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If manifest or masks are damaged, changed, or of a newer version.
        DataError: If configuration or weights are missing, damaged, changed, pickled, or do not
            fit.
        AttachError: If the class is unknown, or no mask can be put on the model.
        HeadCountError, LayerCountError: If masks and model do not fit.
        TypeError, ValueError: If an option is unknown or has no such value.
    """
    if trust_remote_code:
        raise ValueError(
            "code that comes with a model is never run, got trust_remote_code=True; install or "
            "write the class yourself and give it: load_pretrained(folder, model_class=MyModel)"
        )
    folder = Path(folder).expanduser()
    refuse_options(entries)
    wanted, device = floating_type(dtype, torch_dtype), one_device(device_map)
    saved = read_manifest(folder)
    if verify:
        check_files(folder, saved, "load_pretrained(folder, verify=False) opens it")
    stored = configuration(folder)
    cls = named_class(folder) if model_class is None else concrete_class(model_class, stored)
    changed = checked_entries(cls, stored, entries)
    build = saved.build if cls.__name__ == saved.model_class else Build()
    model, missing = loaded(
        cls,
        folder,
        wanted or build.widest(),
        new_head=model_class is not None,
        options=build.options,
        entries=changed,
    )
    if wanted is None:
        build.cast(model)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    try:
        attach(model, saved.masks, inputs, backend or saved.backend)
    except (AttachError, HeadCountError, LayerCountError, UnknownNameError) as error:
        raise type(error)(f"{folder}: {error}") from error
    if model_class is not None:
        missing = damaged_keys(model, missing)
    other = "" if model_class else ", or give model_class= for a class with a new head"
    refuse_missing(folder, cls, missing, other)
    model.eval()  # type: ignore[no-untyped-call]
    return model


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


def loaded(
    cls: type[PreTrainedModel],
    folder: Path,
    dtype: torch.dtype | None,
    *,
    new_head: bool,
    options: Mapping[str, bool] | None = None,
    entries: Mapping[str, Any] | None = None,
) -> tuple[PreTrainedModel, set[str]]:
    """Configuration and weights in that class, and names of the weights that are not stored.

    Args:
        cls: The class.
        folder: Holds both.
        dtype: Of the weights; None = as stored.
        new_head: Whether weights may be drawn anew, and are then reported by transformers.
        options: Arguments of the class beside its configuration.
        entries: Of the configuration, to be changed.

    Raises:
        DataError: If they cannot be read, do not fit, or are not in safetensors files.
    """
    from huggingface_hub.errors import StrictDataclassError

    refuse_other_weights(folder)
    weight_files(folder)
    if unknown := sorted(set(options or {}) - set(switches(cls))):
        raise DataError(
            f"{folder}: {cls.__name__} takes no {unknown[0]!r:.80}, with which the model was "
            f"built; open it with the transformers that wrote it, not {transformers.__version__}"
        )
    told: dict[str, Any] = {**(options or {}), **(entries or {})}
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
                **told,
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
        why = "the files are damaged, or of different models"
        if entries:
            why = (
                f"{' and '.join(entries)} may not fit what is stored: leave out what changes "
                "sizes, and exchange those layers after loading"
            )
        raise DataError(
            f"{folder}: the model cannot be read as {cls.__name__}: {error}; {why}"
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
