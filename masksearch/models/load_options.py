"""What `load_pretrained` is told beside the folder: class, type, device, configuration entries."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from masksearch.errors import AttachError

OWN = ("model_class", "dtype", "backend", "inputs", "verify", "device_map")
HUB = {  # of downloads
    "revision",
    "token",
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "subfolder",
    "variant",
}
IMPLEMENTATION = {"attn_implementation", "_attn_implementation"}
NO_ENTRIES = {  # what chooses code, files or types, not sizes and behaviour
    "architectures",
    "auto_map",
    "dtype",
    "fusion_config",
    "model_type",
    "quantization_config",
    "transformers_version",
    "transformers_weights",
}
Plain = bool | int | float | str | list | dict | None  # type: ignore[type-arg]


def concrete_class(model_class: Any, configuration: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class of models that is asked for; of an Auto class, the one for that configuration.

    Raises:
        TypeError: If it is neither.
        AttachError: If that Auto class has none for this kind of model.
    """
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        return model_class
    mapping = getattr(model_class, "_model_mapping", None)
    if not isinstance(model_class, type) or mapping is None:
        raise TypeError(
            "model_class is a class of Hugging Face models such as BertModel, or "
            f"AutoModelForSequenceClassification, got {model_class!r}"
        )
    kind = configuration.get("model_type")
    found = None
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        found = mapping.get(CONFIG_MAPPING[kind], None)
    if isinstance(found, list | tuple):  # several: the one that was stored, else the first
        stored = configuration.get("architectures") or []
        found = next((each for each in found if each.__name__ in stored), found[0])
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise AttachError(
            f"transformers has no {model_class.__name__} for the model_type {kind!r:.80} of "
            "config.json; give the class itself: load_pretrained(folder, model_class=...)"
        )
    return found


def floating_type(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The type of the weights that is asked for; None = as stored.

    Raises:
        TypeError, ValueError: If it is no floating type, or two are named.
    """
    if dtype is not None and torch_dtype is not None:
        raise ValueError(
            f"torch_dtype is the earlier name of dtype, got both ({torch_dtype!r} and {dtype!r}); "
            "give dtype alone"
        )
    given = torch_dtype if dtype is None else dtype
    if given is None or given == "auto":
        return None
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype):
        raise TypeError(
            f"dtype is a type of torch such as torch.bfloat16 or 'bfloat16', got {given!r:.80}"
        )
    if not found.is_floating_point:
        raise ValueError(
            f"weights have a floating type such as torch.bfloat16, got dtype={found}; quantise a "
            "model with transformers, then put the mask on: ms.attach(model, folder)"
        )
    return found


def one_device(device_map: Any) -> torch.device | None:
    """The device that is asked for; None = the CPU.

    Raises:
        ValueError: If it is not one device.
    """
    whole = isinstance(device_map, Mapping) and set(device_map) == {""}
    given = device_map[""] if whole else device_map
    if given is None:
        return None
    try:
        if isinstance(given, str | int | torch.device) and not isinstance(given, bool):
            return torch.device(given)
    except RuntimeError:
        pass  # "auto", or no device at all
    raise ValueError(
        f"load_pretrained puts a model on one device, got device_map={device_map!r:.80}; give one "
        "such as 'cpu' or 'cuda:0', or spread the model with transformers and put the mask on "
        "then: ms.attach(Model.from_pretrained(folder, device_map=...), folder)"
    )


def refuse_options(given: Mapping[str, Any]) -> None:
    """Refuses what is known to be no entry of a configuration.

    Raises:
        TypeError: Naming what to do instead.
    """
    for name in given:
        if name in HUB:
            raise TypeError(
                f"load_pretrained reads a folder of this machine, so {name}= has no meaning; "
                "fetch a model of the Hub first and give its folder: load_pretrained("
                "huggingface_hub.snapshot_download(name, revision=...))"
            )
        if name in IMPLEMENTATION:
            raise TypeError(
                "what computes the attention of a model with a mask is chosen by backend=, not "
                f"by {name}=; leave it out, or give backend='auto', 'fastest' or another"
            )


def checked_entries(
    cls: type[PreTrainedModel], stored: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Entries of a configuration that are to be changed, all of them known to it.

    Args:
        cls: The class of the model.
        stored: `config.json`.
        given: Entry -> value, such as `num_labels`.

    Raises:
        TypeError: If one is no entry, or its value no plain data.
    """
    refuse_options(given)
    made = cls.config_class
    known = {*stored, "num_labels", "output_attentions", "output_hidden_states"}
    known |= set(getattr(made, "__dataclass_fields__", {}))
    known = {name for name in known if not name.startswith("_")} - NO_ENTRIES
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *OWN], n=1, cutoff=0.7)
            hint = f"did you mean {near[0]}? It takes " if near else "it takes "
            raise TypeError(
                f"load_pretrained has no option {name!r:.80}; {hint}{', '.join(OWN)}, and entries "
                "of config.json such as num_labels. For other options of from_pretrained, open "
                f"the model with transformers and put the mask on: ms.attach({cls.__name__}."
                "from_pretrained(folder, ...), folder)"
            )
        if not isinstance(value, Plain):
            raise TypeError(
                f"an entry of config.json is plain data, got {name}={value!r:.80}; give a number, "
                "a text, a list or a mapping"
            )
    return dict(given)
