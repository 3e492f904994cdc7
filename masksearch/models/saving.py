"""A model and the masks on it in one folder, which transformers reads as well.

    ms.attach(model, mask)
    ms.save_pretrained(model, "runs/model")
    model = ms.load_pretrained("runs/model")                       # weights and mask
    ms.attach(BertModel.from_pretrained("runs/model"), ms.saved_masks("runs/model"))

Beside what transformers writes lie one mask file for each part and `masksearch.json`:

    {"format": 1, "model_class": "BertModel", "build": {}, "backend": "auto",
     "masks": {"self": {"file": "mask.json", "sha256": "9f.."}}, "versions": {..}}

Nothing in such a folder is run: no pickle is read, and the model's class is one of transformers
or the one that the caller gives.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForMaskedLM, BertForPreTraining, PreTrainedModel

from masksearch.attention.attach import ATTACHMENT, attach, attached
from masksearch.attention.probe import SELF, pretrained_models
from masksearch.errors import AttachError, DataError, MaskFormatError
from masksearch.masks import Mask
from masksearch.masks.files import load_mask, save_mask
from masksearch.models.checkpoints import (
    UNREADABLE,
    find_head_parts,
    head_pairs,
    quiet,
    read_configuration,
    read_model,
)
from masksearch.models.heads import MaskedLanguageModel
from masksearch.tasks.text.tokenizer import special_ids
from masksearch.tensors import disk_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

MANIFEST = "masksearch.json"
FORMAT = 1  # of the manifest
VERSION = str(vars(sys.modules["masksearch"])["__version__"])
LARGEST_JSON = 100_000  # characters of a mask's JSON; a larger mask is a safetensors file
ASIDE = ".saving-"  # begin of the name of a folder that is being written
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
REFUSED = {  # options of from_pretrained that a saved folder has no use for
    "trust_remote_code": "code that comes with a model is never run; write the class yourself "
    "and give it: load_pretrained(folder, model_class=MyModel)",
    "attn_implementation": "what computes a mask is chosen by backend=, such as 'sdpa'",
}


# -- writing -----------------------------------------------------------------------------------
def save_pretrained(
    model: nn.Module, folder: Path | str, *, tokenizer: Tokenizer | None = None
) -> Path:
    """Writes a model and the masks on it: what `load_pretrained` opens, and transformers too.

    Everything is written aside and then moved into place, the manifest last. What a killed call
    or a full disk leaves is the earlier folder, or one without a manifest, which is not opened.

    Args:
        model: A Hugging Face model with a mask (`masksearch.attach`), which stays on it. A
            `MaskedLanguageModel` is written as its architecture's model in transformers.
        folder: Made where it is missing; the model there is replaced, other files stay.
        tokenizer: Written as `tokenizer.json` and `tokenizer_config.json`; None = none.

    Returns:
        The folder.

    Raises:
        AttachError: If no mask is attached, gates are, the model is not transformers' own, or
            its class builds other tensors from its configuration than it has.
        OSError: If the folder cannot be written, such as on a full disk; it is then as before.
    """
    folder = Path(folder).expanduser()
    masks, backend = masks_to_save(model)
    made = hugging_face_model(model) if isinstance(model, MaskedLanguageModel) else model
    whole = cast(PreTrainedModel, made)
    options = build_options(whole)
    with write_aside(folder) as aside:
        try:
            with quiet():
                whole.save_pretrained(aside)
        except SafetensorError as error:
            raise disk_error(error, "cannot write the model", folder) from error
        if not (aside / "config.json").is_file():
            raise AttachError(
                f"{type(whole).__name__}.save_pretrained wrote no whole model (an adapter "
                "alone?); merge the adapter into it first"
            )
        if tokenizer is not None:
            save_tokenizer(tokenizer, whole.config, aside)
        entries = {part: write_mask(mask, part, aside) for part, mask in masks.items()}
        manifest = {
            "format": FORMAT,
            "model_class": type(whole).__name__,
            "build": {"options": options} if options else {},
            "backend": backend,
            "masks": entries,
            "versions": {"masksearch": VERSION, "transformers": transformers.__version__},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder


def masks_to_save(model: nn.Module) -> tuple[dict[str, Mask], str]:
    """What is attached to a model that can be saved, and the backend asked for."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"save_pretrained takes a model, got {name}")
    if not isinstance(model, PreTrainedModel | MaskedLanguageModel):
        inner = pretrained_models(model)
        paths = [path for path, module in model.named_modules() if module in inner]
        if not paths:
            raise AttachError(f"{name} contains no Hugging Face model (PreTrainedModel)")
        raise AttachError(
            f"{name} is no Hugging Face model, so nothing could load it again; save the one "
            f"inside: ms.detach(model); ms.attach(model.{paths[0]}, mask); "
            f"ms.save_pretrained(model.{paths[0]}, folder)"
        )
    found = attached(model)
    if not found:
        raise AttachError(
            f"no mask is attached to this {name}; attach one to it first, or save the weights "
            "alone with model.save_pretrained(folder)"
        )
    for part, what in found.items():
        if not isinstance(what, Mask):
            raise AttachError(
                f"gates are attached to {part!r} of this {name}, and only masks are saved with a "
                "model; cut a mask from the gates and attach that: ms.attach(model, "
                "result.mask(sparsity=0.9)); result.save(path) keeps the gates"
            )
    return found, next(iter(model.__dict__[ATTACHMENT].states.values())).backend


def build_options(model: PreTrainedModel) -> dict[str, bool]:
    """The argument of a model's class, beside its configuration, that gives the model's tensors.

    `{"add_pooling_layer": False}` for the encoder inside `BertForMaskedLM`, mostly nothing.
    Found by building the class anew without storage, with each of its switches.

    Raises:
        AttachError: If none does: from this configuration nothing could load the model again.
    """
    cls, config = type(model), deepcopy(model.config)
    config._attn_implementation = "sdpa"
    arguments = inspect.signature(cls.__init__).parameters.values()
    switches = {each.name: each.default for each in arguments if isinstance(each.default, bool)}
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    differ: set[str] = set()
    for options in ({}, *({name: not default} for name, default in switches.items())):
        try:
            with quiet(), torch.device("meta"):
                fresh = {
                    n: tensor.shape for n, tensor in cls(config, **options).state_dict().items()
                }
        except UNREADABLE:  # a class that is not built so
            continue
        if fresh == own or hasattr(model, "hf_quantizer"):
            return options
        differ = differ or {name for name in {*own, *fresh} if own.get(name) != fresh.get(name)}
    if not differ:
        return {}
    raise AttachError(
        f"from this model's configuration {cls.__name__} builds other tensors than it has, so "
        f"nothing could load it again: {len(differ)} differ, such as {min(differ)}; change the "
        "configuration as the model was changed (such as num_hidden_layers, num_labels), or make "
        "it a class of its own, built from its configuration alone"
    )


@contextmanager
def write_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` when the block ends without an error.

    The earlier manifest goes first and the new one comes last, so that a folder with a manifest
    is whole. Weights and masks of the earlier model are removed, other files stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{ASIDE}*"):  # of a killed call
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=ASIDE) as name:
        aside = Path(name)
        yield aside
        new = {path.name for path in aside.iterdir()}
        stale = {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)}
        try:
            stale |= {entry["file"] for entry in read_manifest(folder)["masks"].values()}
        except (FileNotFoundError, MaskFormatError):
            pass  # no earlier save, or a damaged one
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in sorted(new - {MANIFEST}):
            (aside / file).replace(folder / file)
        for file in stale - new:
            (folder / file).unlink(missing_ok=True)
        (aside / MANIFEST).replace(folder / MANIFEST)


def write_mask(mask: Mask, part: str, folder: Path) -> dict[str, str]:
    """Writes the mask of a part; name and SHA-256 of its file.

    `mask.json` of a plain model, else `mask.<part>.json`; `.safetensors` where it is large.
    """
    stem = "mask" if part == SELF else "mask." + re.sub(r"[^\w.-]", "_", part)
    suffix = ".json" if len(mask.to_json()) <= LARGEST_JSON else ".safetensors"
    path = save_mask(mask, folder / f"{stem}{suffix}")
    return {"file": path.name, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- reading -----------------------------------------------------------------------------------
def load_pretrained(
    folder: Path | str,
    *,
    model_class: type[Any] | None = None,
    backend: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Opens what `save_pretrained` wrote: the model with its masks, in eval mode.

    Args:
        folder: Holds `config.json`, `*.safetensors`, `masksearch.json` and its mask files.
        model_class: Another class than the stored one, for example with a head for a task:
            `transformers.BertForSequenceClassification`, or an Auto class such as
            `AutoModelForSequenceClassification`. Weights of heads and pooling layers that are
            not stored are drawn anew, and reported by transformers.
        backend: As in `masksearch.attach`; default: as stored.
        inputs: As in `masksearch.attach`.
        options: Passed on to `from_pretrained` of the class: `dtype` (default: as stored),
            `device_map`, or entries of the configuration such as `num_labels=3`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If manifest or masks are damaged, changed, or of a newer version.
        DataError: If configuration or weights are missing, damaged, pickled, or do not fit, or
            an option is none of `from_pretrained`.
        AttachError: If the class is unknown, or no mask can be put on the model.
        HeadCountError, LayerCountError: If masks and model do not fit.
        ValueError: If an option would run code, read a pickle or exchange the attention.
    """
    for name, instead in REFUSED.items():
        if options.get(name):
            raise ValueError(f"load_pretrained takes no {name}={options[name]!r}: {instead}")
    folder = Path(folder).expanduser()
    masks = saved_masks(folder)
    model = open_model(folder, model_class, **options)
    attach(model, masks, inputs, backend or read_manifest(folder)["backend"])
    return model


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
        if sha256(path) != entry["sha256"]:
            raise MaskFormatError(
                f"{path} was changed or damaged since it was saved: its SHA-256 is not the one "
                f"in {MANIFEST}; take both files from the same save"
            )
        masks[part] = load_mask(path)
    return masks


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `masksearch.json` of a folder says: backend, model_class, options, and masks by part.

    Raises:
        FileNotFoundError: If the folder or its manifest is missing.
        MaskFormatError: If it is damaged, or of a newer version.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give one that save_pretrained wrote")
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {MANIFEST}, so no mask was saved there by masksearch, or the save "
            "was interrupted; load the model with transformers and attach a mask: "
            "ms.attach(model, mask)"
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
        if not names or not all(isinstance(value, bool) for value in options.values()):
            raise ValueError("it names no mask, or an option of the model that is no bool")
        texts = {name: str(stored[name]) for name in ("backend", "model_class")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = error if type(error) is ValueError else repr(error)
        raise MaskFormatError(f"{path} cannot be used: {why}") from error
    return {**texts, "options": options, "masks": stored["masks"]}


def find_stored_class(folder: Path) -> type[PreTrainedModel]:
    """The class of transformers that `config.json` names.

    Raises:
        AttachError: If it names none.
    """
    name = (read_configuration(folder).get("architectures") or [None])[0]
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise AttachError(
            f"{folder / 'config.json'} names the class {name!r:.80}, which is not a model of "
            f"transformers {transformers.__version__}, and code from a folder is never run; give "
            "your own class: load_pretrained(folder, model_class=...)"
        )
    return found


def open_model(
    folder: Path, model_class: type[Any] | None = None, **options: Any
) -> PreTrainedModel:
    """A folder's model, saved by masksearch or not, in eval mode and without masks.

    Args:
        folder: Holds configuration and weights.
        model_class: A class of Hugging Face models, or an Auto class: weights of a head or a
            pooling layer may then be missing, transformers draws and reports them. None = the
            stored class, whole.
        options: Of `from_pretrained`.

    Raises:
        DataError: If they cannot be read, or do not fit.
        AttachError: If no class of transformers is stored.
        TypeError: If `model_class` opens no models.
    """
    cls = find_stored_class(folder) if model_class is None else model_class
    auto = hasattr(cls, "_model_mapping")
    if not (isinstance(cls, type) and (auto or issubclass(cls, PreTrainedModel))):
        raise TypeError(
            "model_class is a class of Hugging Face models such as BertModel, or "
            f"AutoModelForSequenceClassification, got {cls!r}"
        )
    if (folder / MANIFEST).is_file():
        stored = read_manifest(folder)
        if cls.__name__ == stored["model_class"]:
            built: dict[str, bool] = stored["options"]
            if unknown := set(built) - set(inspect.signature(cls.__init__).parameters):
                raise DataError(
                    f"{folder}: {cls.__name__} takes no {min(unknown)!r:.80}, with which the "
                    "model was built; open it with the transformers that wrote it"
                )
            options = {**built, **options}
    with quiet() if model_class is None else nullcontext():
        options = {"dtype": "auto", **options}  # sdpa: never a kernel that config.json names
        model, report = read_model(cls, folder, attn_implementation="sdpa", **options)
    missing = set(report["missing_keys"])
    if model_class is not None:
        start = "" if model.base_model is model else f"{model.base_model_prefix}."
        body = {start + name for name in model.base_model.state_dict()}
        missing = {name for name in missing & body if "pooler" not in name}
    if missing:
        raise DataError(
            f"{folder}: the weights lack {len(missing)} tensors of {type(model).__name__}, such "
            f"as {min(missing)}; take configuration and weights from the same save, or give "
            "model_class= for a class with a new head"
        )
    return cast(PreTrainedModel, model.eval())


# -- our own model in transformers' class --------------------------------------------------------
def hugging_face_model(model: MaskedLanguageModel) -> PreTrainedModel:
    """Our model's weights in transformers' own class, on the CPU, without the mask on it.

    `BertForPreTraining` for a BERT with a sentence-pair head; other architectures have no such
    class, and lose that head with a warning in the log.

    Their head's layer norm takes its epsilon from the configuration, ours 1e-5: logits differ by
    that, about 1e-4 of their size. They are equal where the model came from a checkpoint, or
    went through `use_their_epsilon` before its training.

    Raises:
        AttachError: If the head of that class does not compute what ours does.
    """
    own = model.config
    biases = ("classifier_bias", "norm_bias")  # ModernBERT's head has none, ours has
    settings = {name: True for name in biases if hasattr(own, name)}
    config = type(own).from_dict({**own.to_dict(), **settings})
    with quiet():
        makes: Any = AutoModelForMaskedLM
        whole: Any = makes.from_config(config, dtype=torch.float32)
    parts = find_head_parts(whole)
    if parts is None:
        raise AttachError(
            f"{type(whole).__name__} has another prediction head than MaskedLanguageModel; "
            "train an encoder such as bert, roberta, distilbert, electra or modernbert"
        )
    copy_encoder(model.encoder, whole.base_model)
    dense, norm, activation, out = parts
    with torch.no_grad():
        for mine, theirs in head_pairs(model, dense, norm, out):
            if theirs is not None:
                theirs.copy_(mine)
    check_activation(model, activation or nn.GELU(), type(whole).__name__)  # None: RoBERTa's
    if model.pooler is None or model.pair is None:
        return cast(PreTrainedModel, whole)
    if config.model_type != "bert":
        log.warning(
            "the sentence-pair head is not written: transformers has a class with one for bert, "
            "not for %s",
            config.model_type,
        )
        return cast(PreTrainedModel, whole)
    with quiet():
        both: Any = BertForPreTraining(config)
    state = whole.state_dict()
    for start, head in (("bert.pooler.dense", model.pooler), ("cls.seq_relationship", model.pair)):
        state |= {f"{start}.{name}": part.cpu() for name, part in head.state_dict().items()}
    both.load_state_dict(state)
    return cast(PreTrainedModel, both)


def copy_encoder(encoder: nn.Module, theirs: nn.Module) -> None:
    """Copies an encoder's weights; a pooler that only ours has is left out."""
    known = theirs.state_dict()
    state = {name: part.cpu() for name, part in encoder.state_dict().items() if name in known}
    missing = sorted(name for name in set(known) - set(state) if not name.endswith("norm.bias"))
    if missing:
        raise AttachError(
            f"{type(theirs).__name__} has weights that this encoder lacks, such as {missing[0]}"
        )
    theirs.load_state_dict(state, strict=False)


def check_activation(model: MaskedLanguageModel, theirs: Any, name: str) -> None:
    """Refuses a head whose activation is not the one of transformers' class."""
    values = torch.linspace(-3, 3, 25)
    with torch.no_grad():
        same = torch.allclose(theirs(values), model.activation(values), rtol=1e-3, atol=1e-4)
    if not same:
        raise AttachError(
            f"{name}'s head has the activation {theirs}, this model {model.activation}; "
            "give the encoder's configuration the same (gelu)"
        )


def use_their_epsilon(model: MaskedLanguageModel) -> MaskedLanguageModel:
    """Gives the head's layer norm the epsilon that transformers' class has, in place."""
    config = model.config
    names = ("layer_norm_eps", "norm_eps")
    model.norm.eps = next((getattr(config, n) for n in names if hasattr(config, n)), 1e-12)
    return model


def save_tokenizer(tokenizer: Tokenizer, config: Any, folder: Path) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` needs.

    It gets the `[CLS] .. [SEP] .. [SEP]` template where it adds no special tokens by itself.

    Args:
        tokenizer: Left as it is.
        config: The model's.
        folder: Where to.
    """
    from tokenizers import Tokenizer as Made
    from tokenizers.processors import TemplateProcessing

    copied, special = Made.from_str(tokenizer.to_str()), special_ids(tokenizer)
    tokens = {role: str(tokenizer.id_to_token(number)) for role, number in special.items()}
    tokens["unk"] = tokens.pop("unknown")  # transformers' name of it
    if copied.post_processor is None:
        first, last = tokens["cls"], tokens["sep"]
        copied.post_processor = TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, special["cls"]), (last, special["sep"])],
        )
    copied.save(str(folder / "tokenizer.json"))
    rows = int(config.max_position_embeddings)  # RoBERTa counts them from the padding on
    segments = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4 and 5
        "model_max_length": rows - config.pad_token_id - 1
        if config.model_type == "roberta"
        else rows,
        "model_input_names": ["input_ids", *segments, "attention_mask"],
        **{f"{role}_token": token for role, token in tokens.items()},
    }
    text = json.dumps(described, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
