"""A model and the masks on it in one folder, which transformers alone refuses to open dense.

    ms.attach(model, mask)
    ms.save_pretrained(model, "runs/model")
    model = ms.load_pretrained("runs/model")                       # weights and mask
    ms.saved_masks("runs/model")                                   # {"self": mask}
    trainer = Trainer(model, args, callbacks=[ms.MaskCallback(masks.window(16))], ..)

Beside what transformers writes lie a card, a file and a picture of each part's mask, and
`masksearch.json`:

    {"format": 1, "model_class": "BertModel", "options": {}, "adapter": false, "backend": "auto",
     "masks": {"self": {"file": "mask.json", "digest": "9f.."}},
     "weights": {"model.safetensors": "1c.."}, "versions": {..}}

Nothing in such a folder is run: no pickle is read, and the model's class is one of transformers
or the one that the caller gives.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.trainer_callback import ExportableState

from masksearch.attention.attach import ATTACHMENT, Attachment, attach, attached
from masksearch.attention.interface import ENTRY
from masksearch.attention.probe import SELF, opened, unwrapped, ways_inside
from masksearch.errors import AttachError, DataError, MaskFormatError, name_extra, warn
from masksearch.files import disk_error, write_in_one_move, write_text_in_one_move
from masksearch.masks import Mask
from masksearch.masks.text import save_mask
from masksearch.models.card import Account, Findings, write_card
from masksearch.models.checkpoints import (
    ADAPTER_WEIGHTS,
    CONFIG,
    FORMAT,
    MANIFEST,
    NO_POOLER,
    VERSION,
    WEIGHTS,
    check_masks,
    check_weights,
    download_checkpoint,
    find_folder,
    hash_file,
    hash_weights,
    quiet,
    read_config,
    read_json,
    read_manifest,
    read_model,
    saved_masks,
)
from masksearch.models.embedding import MODULES, holds_embedding, open_embedding
from masksearch.models.encoders import MaskedLanguageModel
from masksearch.models.pretrained import count_positions, hugging_face_model
from masksearch.models.special_tokens import TokenSource, read_special_ids

OWN_MASK = re.compile(r"mask.*\.(json|safetensors)")  # a file that may be a user's
LARGEST_JSON = 100_000  # characters of a mask's JSON; a larger mask is a safetensors file
BASE_CONFIG = "base_config.json"  # of the model that an adapter is for
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DENSE_LENGTH = "dense_max_length"  # in a tokenizer's settings: its length without the mask
TOKENIZER_FILES = (  # of all of transformers' own, with tokens that older ones keep apart
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "bpe.codes", "*.model"),
    *("chat_template.*", "additional_chat_templates/*"),
)
CONFIGS = (CONFIG, "adapter_config.json", BASE_CONFIG, MODULES)
QUANTISED = ("torchao.", "torch.ao.nn.quantized.")  # whose modules and weights no file holds


# -- writing -----------------------------------------------------------------------------------
def save_pretrained(
    model: nn.Module,
    folder: Path | str,
    *,
    tokenizer: Tokenizer | TokenSource | PreTrainedTokenizerBase | None = None,
    found: Account | Findings | None = None,
    max_shard_size: int | str | None = None,
) -> Path:
    """Writes a model and the masks on it: what `load_pretrained` opens, and transformers refuses.

    Its config.json asks for masksearch's attention, so that no program takes it for the dense
    model. For that one write `ms.detach(model).save_pretrained(folder)`.

    Beside them lie pictures of the masks and a model card, README.md. One that you wrote or
    changed is kept.

    Everything is written aside and then moved into place, the manifest last. What a killed call
    or a full disk leaves is the earlier folder, or one without a manifest, which is not opened.

    Args:
        model: A Hugging Face model with a mask (`masksearch.attach`), which stays on it. A
            `MaskedLanguageModel` is written as its architecture's model in transformers; a
            SentenceTransformer by its own library, with its pooling and its tokenizer.
        folder: Made where it is missing; the model there is replaced, other files stay.
        tokenizer: Written as `tokenizer.json` and `tokenizer_config.json`; None = none. A
            `Corpus` knows which special tokens it was opened with, whatever they are called; one
            of transformers is written by itself. A
            tokenizer in the folder cuts texts at the mask's length, where that is the shorter
            one; that of a model that does not generate pads them on the right.
        found: The plan that gave the mask, or how it was found; the card says it.
        max_shard_size: Of a file of weights, such as `"5GB"`; None = as transformers has it.

    Returns:
        The folder.

    Raises:
        ValueError: If the plan is of another mask.
        AttachError: If no mask is attached, gates are, the model is not transformers' own, or
            its class builds other tensors from its configuration than it has.
        OSError: If the folder cannot be written, such as on a full disk; it is then as before.
    """
    masks, how = _masks_to_save(model)
    if not isinstance(found, Findings | None) and list(masks.values()) != [found.mask]:
        raise ValueError(
            f"found= is the plan of {found.mask!s:.100}, and attached is "
            f"{', '.join(map(str, masks.values())):.100}; give its plan, or none"
        )
    bare = unwrapped(model, adapters=False)
    whole: Any = hugging_face_model(bare) if isinstance(bare, MaskedLanguageModel) else bare
    written = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    return _write_model(whole, masks, how, Path(folder).expanduser(), tokenizer, found, **written)


def _write_model(
    whole: Any,
    masks: dict[str, Mask],
    how: dict[str, Any],
    folder: Path,
    tokenizer: Tokenizer | TokenSource | PreTrainedTokenizerBase | None = None,
    found: Account | Findings | None = None,
    **written: Any,
) -> Path:
    """Writes a model of transformers, a PEFT adapter or a SentenceTransformer, and masks.

    Args:
        whole: The model, without what trains or compiles it around it.
        masks: Part -> mask.
        how: Other arguments of `attach`, beside their defaults.
        folder: Where to.
        tokenizer: See `save_pretrained`.
        found: How the mask was found.
        written: Of the model's own `save_pretrained`.
    """
    inner = opened(whole) or whole
    options, base = _build_options(inner), cast(PreTrainedModel, unwrapped(inner))
    if base is not inner and Path(base.name_or_path).expanduser().resolve() == folder.resolve():
        raise AttachError(
            f"{folder} holds the base of this {type(inner).__name__}, whose weights an adapter "
            "needs beside its own; save the adapter in another folder"
        )
    if inner is not whole:
        written |= {"create_model_card": False}
    with _write_aside(folder) as aside:
        try:
            with quiet():
                type(whole).save_pretrained(whole, str(aside), **written)
        except SafetensorError as error:
            raise disk_error(error, "cannot write the model", folder) from error
        if tokenizer is not None:
            save_tokenizer(tokenizer, inner, aside)
        if base is not inner:  # beside a config.json transformers takes an adapter for a model
            base.config.to_json_file(aside / BASE_CONFIG)
        entries = {part: _write_mask(mask, part, aside) for part, mask in masks.items()}
        manifest = {
            "format": FORMAT,
            "model_class": type(base).__name__,
            "options": options,
            "adapter": base is not inner,
            **how,
            **({"way": found.way} if isinstance(found, Findings) and found.way else {}),
            "masks": entries,
            "weights": hash_weights(aside),
            "versions": {"masksearch": VERSION, "transformers": transformers.__version__},
        }
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        files = {Path(entries[part]["file"]).stem: mask for part, mask in masks.items()}
        write_card(aside, folder, base, files, found)
    limit_length(folder, whole)
    return folder


def _save_with_masks(model: Any, save_directory: Path | str, **how: Any) -> None:
    """The method that a `MaskCallback` puts in place of `save_pretrained`, so that whoever
    saves the model saves its masks.

    Args:
        model: A model of transformers, or PEFT's around one.
        save_directory: Where to.
        how: Of the model's own `save_pretrained`.
    """
    masks = attached(model)
    masked = bool(masks) and all(isinstance(what, Mask) for what in masks.values())
    if masked and how.get("is_main_process", True):
        _write_model(model, *_masks_to_save(model), Path(save_directory), **how)
    else:
        type(model).save_pretrained(model, save_directory, **how)


def _masks_to_save(model: nn.Module) -> tuple[dict[str, Mask], dict[str, Any]]:
    """The masks on a model that can be saved, and the other arguments of `attach`."""
    model = unwrapped(model)
    name = type(model).__name__
    if isinstance(model, str | Path):
        raise TypeError(f"the model comes first, then the folder: got the folder {model!s} first")
    if not isinstance(model, PreTrainedModel | MaskedLanguageModel):
        inner = next(iter(ways_inside(model) if isinstance(model, nn.Module) else ()), "model")
        raise AttachError(
            f"{name} is no Hugging Face model (PreTrainedModel), so nothing could load it again; "
            f"save the one that it is made of: ms.detach(model, missing_ok=True); "
            f"ms.attach({inner}, mask); ms.save_pretrained({inner}, folder)"
        )
    parts = attached(model)
    if not parts or not all(isinstance(what, Mask) for what in parts.values()):
        raise AttachError(
            f"{'gates are' if parts else 'no mask is'} attached to this {name}; attach a mask (of "
            "gates: result.mask(sparsity=0.9)), or save the weights: model.save_pretrained(folder)"
        )
    attachment: Attachment = model.__dict__[ATTACHMENT]
    how = {"backend": next(iter(attachment.states.values())).backend}
    return parts, how | ({"drop_tokens": attachment.drop_tokens} if attachment.drop_tokens else {})


def _check_adapter(model: Any) -> None:
    """Refuses adapters that could not be loaded again.

    Raises:
        AttachError: If the base model has no name, or there are several adapters.
    """
    adapters = dict(model.peft_config)
    if set(adapters) != {"default"} or not adapters["default"].base_model_name_or_path:
        base = unwrapped(model).name_or_path or "a model without a name"
        raise AttachError(
            "a mask is saved beside a single adapter, 'default', of a model that was loaded from "
            f"a folder or from the Hub; this {type(model).__name__} has the adapters "
            f"{', '.join(adapters)}, of {base}; write both as one model: "
            "ms.save_pretrained(model.merge_and_unload(), folder)"
        )


def _build_options(model: PreTrainedModel) -> dict[str, bool]:
    """The argument of a model's class, beside its configuration, that gives the model's tensors.

    `{"add_pooling_layer": False}` for the encoder inside `BertForMaskedLM`, mostly nothing.

    Raises:
        AttachError: If the class then builds other tensors (without storage, to compare): from
            this configuration nothing could load the model again. Likewise if weights are of a
            class that safetensors do not hold.
    """
    if unwrapped(model) is not model:
        _check_adapter(model)
        return {}
    kinds = [type(each).__module__ for each in (*model.modules(), *model.parameters())]
    if not hasattr(model, "hf_quantizer") and any(kind.startswith(QUANTISED) for kind in kinds):
        raise AttachError(
            f"this {type(model).__name__} was quantised in memory, and safetensors hold no such "
            "weights; save the model before that, and quantise what ms.load_pretrained(folder) "
            "opens (torchao, bitsandbytes: its option quantization_config=)"
        )
    cls, config = type(model), cast(Any, deepcopy(model.config))
    config._attn_implementation = None  # the class's own choice
    switches = inspect.signature(cls.__init__).parameters
    bare = getattr(model, "pooler", model) is None and "add_pooling_layer" in switches
    options = NO_POOLER if bare else {}
    try:
        with quiet(), torch.device("meta"):
            built = cls(config, **options).state_dict()
    except (TypeError, RuntimeError):  # a class that is not built so is not compared
        return options
    fresh, present = ({n: w.shape for n, w in s.items()} for s in (built, model.state_dict()))
    differ = {name for name in {*present, *fresh} if present.get(name) != fresh.get(name)}
    if differ and not hasattr(model, "hf_quantizer"):
        raise AttachError(
            f"from this model's configuration {cls.__name__} builds other tensors than it has, so "
            f"nothing could load it again: {len(differ)} differ, such as {min(differ)}; change "
            "the configuration as the model was changed (such as num_hidden_layers, num_labels), "
            "or make it a class of its own, built from its configuration alone"
        )
    return options


@contextmanager
def _write_aside(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files move to `folder` when the block ends without an error.

    The earlier manifest goes first and the new one comes last, so that a folder with a manifest
    is whole. Weights and masks of the earlier model are removed, other files stay.
    """
    aside = folder / ".saving"
    shutil.rmtree(aside, ignore_errors=True)  # of a killed call
    aside.mkdir(parents=True)
    try:
        yield aside
        written = (path for path in aside.rglob("*") if path.is_file())
        new = {str(path.relative_to(aside)) for path in written}
        stale = {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)}
        stale |= {path.name for path in folder.glob("*.json") if path.name in CONFIGS}
        with suppress(FileNotFoundError, MaskFormatError):  # no earlier save, or a damaged one
            for entry in read_manifest(folder)["masks"].values():
                stale |= {entry["file"], f"{Path(entry['file']).stem}.png"}
        (folder / MANIFEST).unlink(missing_ok=True)
        for file in sorted(new - {MANIFEST}):
            if file not in stale and OWN_MASK.fullmatch(file):
                _set_aside(folder / file, aside / file)
            (folder / file).parent.mkdir(exist_ok=True)
            (aside / file).replace(folder / file)
        for file in stale - new:
            (folder / file).unlink(missing_ok=True)
        (aside / MANIFEST).replace(folder / MANIFEST)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _set_aside(there: Path, new: Path) -> None:
    """Renames a mask file that no save has written, where another one takes its name."""
    if there.is_file() and (own := hash_file(there)) != hash_file(new):
        there.rename(kept := there.with_stem(f"{there.stem}.{own[:8]}"))
        warn(f"{there} held another mask, which is {kept.name} from now on")


def _write_mask(mask: Mask, part: str, folder: Path) -> dict[str, str]:
    """Writes the mask of a part; the name of its file, and the mask's digest.

    `mask.json` of a plain model, else `mask.<part>.json`; `.safetensors` where it is large.
    """
    stem = "mask" if part == SELF else "mask." + re.sub(r"[^\w.-]", "_", part)
    suffix = ".json" if len(mask.to_json()) <= LARGEST_JSON else ".safetensors"
    return {"file": save_mask(mask, folder / f"{stem}{suffix}").name, "digest": mask.digest}


def save_tokenizer(
    source: Tokenizer | TokenSource | PreTrainedTokenizerBase, model: Any, folder: Path
) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` needs.

    It gets the `[CLS] .. [SEP] .. [SEP]` template where it adds no special tokens by itself.

    Args:
        source: The tokenizer, which is left as it is, or a corpus that holds it; one of
            transformers writes itself.
        model: Whose positions are its length.
        folder: Where to.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        source.save_pretrained(str(folder))
        return
    special = read_special_ids(source) if isinstance(source, Tokenizer) else source.special
    tokenizer = source if isinstance(source, Tokenizer) else source.tokenizer
    copied = Tokenizer.from_str(tokenizer.to_str())
    tokens = {role: str(copied.id_to_token(number)) for role, number in special.items()}
    tokens["unk"] = tokens.pop("unknown")  # transformers' name of it
    if copied.post_processor is None:
        first, last = tokens["cls"], tokens["sep"]
        copied.post_processor = TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, special["cls"]), (last, special["sep"])],
        )
    copied.save(str(folder / "tokenizer.json"))
    types = getattr(model.config, "type_vocab_size", 0)
    segments = ["token_type_ids"] if types > 1 else []
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to transformers 4 and 5
        "model_max_length": count_positions(model)[0],
        "model_input_names": ["input_ids", *segments, "attention_mask"],
        **{f"{role}_token": token for role, token in tokens.items()},
    }
    text = json.dumps(described, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def limit_length(folder: Path, model: nn.Module, most: int | None = None) -> None:
    """Has the tokenizer beside a model cut texts at the mask's length, and pad them on the right
    unless the model generates, since masks count positions from the left.

    Its length without the mask stays beside the other, for the mask that comes next.

    Args:
        folder: What `_write_model` wrote, with the files of a tokenizer or without.
        model: The one in the folder; of one that has several parts nothing is changed.
        most: A length that is shorter still; None = there is none.
    """
    path = folder / "tokenizer_config.json"
    files = [*folder.glob("tokenizer*"), *folder.glob("vocab.*")]
    mask = saved_masks(folder).get(SELF) if files else None
    if mask is None:
        return
    written = read_json(path) if path.is_file() else {}
    settings = dict(written)
    dense = settings.pop(DENSE_LENGTH, settings.get("model_max_length")) or VERY_LARGE_INTEGER
    longest = min(dense, mask.longest or dense, most or dense)
    if longest < dense:
        settings |= {"model_max_length": longest, DENSE_LENGTH: dense}
    elif DENSE_LENGTH in written:
        settings["model_max_length"] = dense
    inner: Any = unwrapped(model)
    if not inner.can_generate():  # what generates pads on the left
        settings["padding_side"] = "right"
    if settings != written:
        write_text_in_one_move(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")


# -- reading -----------------------------------------------------------------------------------
def copy_tokenizer(folder: Path, out: Path) -> None:
    """Puts the model's tokenizer beside it, where it has one and `out` has none."""
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            copied = out / path.relative_to(folder)
            if path.is_file() and not copied.exists():
                with write_in_one_move(copied) as beside:  # a full disk
                    shutil.copy(path, beside)


def load_pretrained(
    folder: Path | str,
    *,
    model_class: type[Any] | None = None,
    revision: str | None = None,
    backend: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Opens what `save_pretrained` or a `MaskCallback` wrote: model and masks, in eval mode.

    Of a PEFT adapter it opens the base that the adapter names, and returns PEFT's model; of an
    embedding model (modules.json) it returns a SentenceTransformer, on the CPU.

    Args:
        folder: Holds `config.json`, `*.safetensors`, `masksearch.json` and its mask files; or the
            name of such a repository on the Hugging Face Hub, `"owner/name"`, where no folder has
            that name.
        revision: Of a name on the Hub: a branch, a tag or a commit; None = its main branch.
        model_class: Another class than the stored one, for example with a head for a task:
            `transformers.BertForSequenceClassification`, or an Auto class such as
            `AutoModelForSequenceClassification`. Weights of heads and pooling layers that are
            not stored, or in another size, are drawn anew, and reported by transformers.
        backend: As in `masksearch.attach`; default: as stored.
        inputs: As in `masksearch.attach`.
        options: Passed on to `from_pretrained` of the class: `dtype` (default: as stored),
            `device_map`, or entries of the configuration such as `num_labels=3`.

    Raises:
        FileNotFoundError: If the folder, its manifest or a mask file is missing.
        MaskFormatError: If manifest or masks are damaged, changed, or of a newer version.
        DataError: If configuration or weights are missing, damaged, pickled, others than those
            that the masks were saved with, or do not fit, or an option is none of
            `from_pretrained`; if a name is neither a folder nor on the Hub.
        AttachError: If the class is unknown, or no mask can be put on the model.
        HeadCountError, LayerCountError: If masks and model do not fit.
        ValueError: If an option would run code, read a pickle or exchange the attention.

    >>> import masksearch as ms
    >>> from transformers import BertConfig, BertModel
    >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> bert = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small))
    >>> _ = ms.save_pretrained(ms.attach(bert, ms.masks.window(2)), "sparse-bert")
    >>> model = ms.load_pretrained("sparse-bert")
    >>> ms.saved_masks("sparse-bert")
    {'self': window(2)}
    """
    if fixed := {"trust_remote_code", "attn_implementation"} & set(options):
        raise ValueError(
            f"load_pretrained takes no {min(fixed)}: code that comes with a model is never run "
            "(write the class yourself and give it: model_class=MyModel), and what computes a "
            "mask is chosen by backend="
        )
    name, folder = folder, Path(folder).expanduser()
    if isinstance(name, str) and HUB_NAME.fullmatch(name) and not folder.exists():
        folder = download_checkpoint(name, revision)
    masks, stored = check_masks(folder), read_manifest(folder)
    backend = backend or stored["backend"]
    if stored["adapter"]:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        options = {"config": read_config(folder / BASE_CONFIG), **options}
        cls = model_class or _find_class(stored["model_class"], folder / MANIFEST)
        model = open_model(find_folder(str(base))[1], cls, **options)
    else:
        model = open_model(folder, model_class, **options)
    attach(model, masks, inputs, backend, drop_tokens=stored["drop_tokens"])
    whole = with_adapter(model, folder) if stored["adapter"] else model
    check_weights(folder)
    return whole


def with_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """PEFT's model around that one, with the adapter of a folder.

    Raises:
        DataError: If the adapter's weights are missing or pickled, or PEFT is not installed.
    """
    with name_extra("peft", f"the adapter {folder}"):
        from peft import PeftModel
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(f"{folder} holds no {ADAPTER_WEIGHTS}, and pickles are not read")
    with quiet():
        return PeftModel.from_pretrained(model, str(folder)).eval()


def _find_class(name: Any, path: Path) -> type[PreTrainedModel]:
    """The class of transformers that a file names.

    Raises:
        AttachError: If there is none.
    """
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise AttachError(
            f"{path} names the class {name!r:.80}, which is not a model of "
            f"transformers {transformers.__version__}, and code from a folder is never run; give "
            "your own class: load_pretrained(folder, model_class=...)"
        )
    return kind


def open_model(
    folder: Path, model_class: type[Any] | None = None, **options: Any
) -> PreTrainedModel:
    """A folder's model, saved by masksearch or not, in eval mode and without masks: of an
    embedding model a SentenceTransformer, unless a class is given.

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
    if model_class is None and holds_embedding(folder):
        return cast(PreTrainedModel, open_embedding(folder, **options))
    stored_classes = read_json(folder / CONFIG).get("architectures") or [None]
    cls: Any = model_class or _find_class(stored_classes[0], folder / CONFIG)
    if not isinstance(cls, type):
        raise TypeError(f"model_class is a class such as transformers.BertModel, got {cls!r}")
    if (folder / MANIFEST).is_file():
        stored = read_manifest(folder)
        if cls.__name__ == stored["model_class"]:
            options = {**stored["options"], **options}
    options = {"dtype": "auto", **options, "attn_implementation": None}  # never a stored kernel
    with quiet() if model_class is None else nullcontext():
        model, _ = read_model(cls, folder, new_head=model_class is not None, **options)
    vars(model.config).pop(ENTRY, None)  # of the mask that is not on it yet
    return cast(PreTrainedModel, model.eval())


# -- training -----------------------------------------------------------------------------------
class MaskCallback(TrainerCallback, ExportableState):
    """Trains under a mask with `transformers.Trainer`, and saves it wherever the model is saved.

    Checkpoints, the folder of `trainer.save_model` and what is pushed to the Hub are then what
    `masksearch.save_pretrained` writes. Every model that `model_init` makes gets the mask. A
    training that resumes under another mask is refused.

    Make the Trainer with it, `callbacks=[..]`. Of a callback that `trainer.add_callback` adds,
    transformers calls nothing before `train`: that puts the mask on, `evaluate` and `predict`
    are refused until then, and `save_model` writes the model without a mask.

    Args:
        mask: As in `masksearch.attach`, a mask or a mapping from parts to masks; None = the one
            that is on the model already.
        part: As in `attach`.
        backend: As in `attach`.

    Raises:
        TypeError: If `mask` is no mask.
        AttachError: From the Trainer: if the mask cannot be put on the model, or there is none,
            if the model could not be loaded again from a checkpoint, or one is resumed that was
            trained under another mask; if `evaluate` or `predict` ran without the mask.

    >>> import masksearch as ms
    >>> keeps = ms.MaskCallback(ms.masks.window(64))
    >>> trainer = Trainer(model=bert, args=args, callbacks=[keeps])  # doctest: +SKIP
    """

    def __init__(
        self,
        mask: Mask | Mapping[str, Mask] | None = None,
        *,
        part: str | None = None,
        backend: str = "auto",
    ) -> None:
        several = list(mask.values()) if isinstance(mask, Mapping) else [mask]
        if mask is not None and not all(isinstance(each, Mask) for each in several):
            raise TypeError(f"MaskCallback takes a mask like masks.window(16), got {mask!r:.80}")
        self.mask, self.part, self.backend = mask, part, backend
        self.masks: dict[str, Mask] = {}  # those on the model, by part

    def on_init_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Puts the mask on the model of the Trainer."""
        if self.mask is not None:
            self.put_on(parts["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """The same for a model that was made since, and a look at what is resumed."""
        self.put_on(parts["model"])
        stored = state.stateful_callbacks.get(type(self).__name__)
        before = stored.get("attributes", {}).get("digests") if isinstance(stored, dict) else None
        if state.global_step and before and before != self.state()["attributes"]["digests"]:
            raise AttachError(
                f"the checkpoint of step {state.global_step} was trained under another mask than "
                f"the one that is attached now, {attached(parts['model'])!s:.200}; resume under "
                "its own, ms.saved_masks(checkpoint), or begin anew, resume_from_checkpoint=None"
            )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Refuses scores of a model without the mask, after their first batch."""
        present, mask = attached(parts["model"]), self.mask
        other = mask is not None and present != mask and [*present.values()] != [mask]
        if other or not present:
            raise AttachError(
                f"these scores are under {', '.join(map(str, present.values())) or 'no mask':.100}"
                f", not under {mask or 'a mask'!s:.100} of MaskCallback: one that is added "
                "later puts its mask on in train() alone; give it to the Trainer, callbacks=[..], "
                "or ms.attach(model, mask) first; for dense scores "
                "trainer.remove_callback(ms.MaskCallback)"
            )

    def put_on(self, model: nn.Module) -> None:
        """Attaches the mask where it is not on the model, and lets the model save it."""
        if self.mask is not None and (not self.masks or attached(model) != self.masks):
            attach(model, self.mask, backend=self.backend, part=self.part)
        whole: Any = unwrapped(model, adapters=False)
        self.masks, _ = _masks_to_save(whole)
        _build_options(opened(whole) or whole)  # what could not be loaded again is refused now
        whole.__dict__["save_pretrained"] = partial(_save_with_masks, whole)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps of the callback: the digests of the masks."""
        digests = {part: mask.digest for part, mask in self.masks.items()}
        return {"args": {}, "attributes": {"digests": digests}}
