"""Pre-trained encoders: a folder or a Hub name -> a model that masks can be searched on.

start = open_pretrained("models/my-bert")              # or "google-bert/bert-base-uncased"
start.shape(128)                                       # Shape(length=128, layers=12, heads=12)
corpus = Corpus.load(text, tokenizer=start.tokenizer_source, length=128)
start.check_tokens(corpus.vocabulary, corpus.special["pad"])
model = start.masked_language_model(seed=0)            # with the checkpoint's own head
classifier = SequenceClassifier(start.encoder(), 2, seed=0)

Weights are read from safetensors only, and no code that comes with a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, StrictDataclassError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as messages

import masksearch.attention.interface  # noqa: F401  (registers what the probe needs)
from masksearch.attention.probe import probe
from masksearch.contracts import Shape
from masksearch.errors import DataError, LengthError
from masksearch.models.heads import MaskedLanguageModel
from masksearch.models.manifest import check_masks, read_json

log = logging.getLogger(__name__)

SECONDS = 5.0  # for the Hub's first answer
# What is downloaded: no pickle, no code.
FILES = ["*.json", "model*.safetensors", "mask*.safetensors", "*.txt", "*.model"]
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
OTHERS = ("adapter_config.json", "shard-*.safetensors")  # transformers prefers their weights


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses transformers' messages and bars; the global generator stays as it was."""
    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # type: ignore[no-untyped-call]
    messages.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()  # type: ignore[no-untyped-call]


# -- files -------------------------------------------------------------------------------------
def find_local_folder(name: str | Path) -> Path | None:
    """The absolute folder of that name; None where it can only be a Hub name.

    Raises:
        DataError: If it can only be a folder, and is none.
    """
    path, spelled = Path(name).expanduser(), str(name)
    if path.is_dir():
        return path.resolve()
    local = spelled.startswith((".", "~", os.sep)) or spelled.count("/") > 1
    if local or isinstance(name, Path) or path.exists():
        raise DataError(
            f"no such folder: {path}; give a folder with config.json and model.safetensors, "
            "or a name on the Hugging Face Hub such as google-bert/bert-base-uncased"
        )
    return None


def download_checkpoint(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub checkpoint, from the cache where it is whole, else from the Hub.

    One try: a Hub that cannot be reached is said at once.

    Raises:
        DataError: If it is neither in the cache nor can be downloaded.
    """
    wanted: dict[str, Any] = {"repo_id": name, "allow_patterns": FILES}
    with suppress(OSError, ValueError):  # not in the cache, or not whole
        folder = Path(snapshot_download(**wanted, revision=revision, local_files_only=True))
        find_files(folder)
        return folder
    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS)  # one try, no retries
        return Path(snapshot_download(**wanted, revision=found.sha))
    except (OSError, ValueError, HTTPError) as error:  # HTTPError: of the Hub client's transport
        raise DataError(
            f"no such folder: {name!r}, and the Hugging Face Hub gave no checkpoint of that name "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); without a network, "
            "give a local folder with config.json and model.safetensors (--weights FOLDER)"
        ) from error


def find_folder(name_or_folder: str | Path) -> tuple[str, Path]:
    """What a checkpoint is called (an absolute folder, or its Hub name), and where its files are.

    Raises:
        DataError: If it is neither on disk nor can be downloaded.
    """
    folder = find_local_folder(name_or_folder)
    name = str(folder or name_or_folder)
    return name, folder or download_checkpoint(name)


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
        found = path.stat()
        part = hash_file(path, found.st_size, found.st_mtime_ns)
        total.update(f"{path.name}|{part}|".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=64)
def hash_file(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file in hex, read once for each size and time of its last change."""
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
        DataError: If they cannot be read, do not fit, or are not in safetensors files.
    """
    find_files(folder)
    fixed = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    report = {"ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        model, found = cls.from_pretrained(folder, **options, **fixed, **report)
    except UNREADABLE as error:
        raise DataError(
            f"{folder}: the model cannot be read as {cls.__name__}: {error}; the files are "
            "damaged, not whole or of different models, or an option does not fit them"
        ) from error
    unfit = {name: "missing" for name in found["missing_keys"]}
    for name, stored, expected in found["mismatched_keys"]:
        unfit[name] = f"stored {list(stored)}, expected {list(expected)}"
    if new_head:
        body = "" if model.base_model is model else f"{model.base_model_prefix}."
        unfit = {n: why for n, why in unfit.items() if n.startswith(body) and "pooler" not in n}
    if unfit:
        raise DataError(
            f"{folder}: the weights do not fit {type(model).__name__} in {len(unfit)} tensors, "
            f"such as {min(unfit)} ({unfit[min(unfit)]}); take configuration and weights from the "
            "same save, or give model_class= for a class with a new head"
        )
    return model, found


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a folder.

    Raises:
        DataError: If it cannot be read.
    """
    fixed = {"trust_remote_code": False, "local_files_only": True}
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(folder, **fixed)
    except UNREADABLE as error:
        raise DataError(f"{folder / CONFIG} cannot be read: {error}") from error
    return found


def read_encoder(folder: Path, dropout: float | None) -> tuple[Any, dict[str, Any]]:
    """The encoder under its masked-language-model head, and what was missing or left over.

    Raises:
        DataError: If it is no encoder, or the files cannot be read or do not fit.
    """
    find_files(folder)
    config = read_config(folder)
    kind = config.model_type
    decodes = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or decodes:
        raise DataError(
            f"{folder / CONFIG}: {kind!r} is not an encoder that predicts masked tokens; give one "
            "such as bert, roberta, distilbert, electra, albert or modernbert"
        )
    for name, value in config.to_dict().items():  # each architecture has names of its own
        if dropout is not None and "dropout" in name and isinstance(value, int | float):
            setattr(config, name, dropout)
    with quiet():
        return read_model(
            AutoModelForMaskedLM, folder, new_head=True, config=config, dtype=torch.float32
        )


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
        """What a mask is lowered to at that length.

        Raises:
            LengthError: If the model has fewer positions.
        """
        if length > self.positions:
            raise LengthError(
                f"{self.name} has {self.positions} positions, asked for {length}; "
                f"use a length of at most {self.positions}"
            )
        return Shape(length, self.layers, self.heads)

    @property
    def tokenizer_source(self) -> str:
        """What `Corpus.load(tokenizer=...)` takes: the folder.

        Raises:
            DataError: If the folder holds no tokenizer.
        """
        folder = self.locate()
        known = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json", "*.model")
        if not any(any(folder.glob(name)) for name in known):
            raise DataError(
                f"{folder} holds no tokenizer ({', '.join(known)}); copy the one that the "
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
                f"the files in {folder} have changed since {self.name} was opened; open it again"
            )
        return folder


@dataclass(frozen=True)
class Pretrained(StoredCheckpoint):
    """A checkpoint of an encoder; see `StoredCheckpoint` for what it shares with decoders.

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
        pad: The configuration's padding id; None where it names none.
        padded_positions: Whether positions are counted by what is not `pad` (RoBERTa).
        has_head: Whether the checkpoint holds a masked-language-model head.
        has_pair_head: Whether it holds BERT's next-sentence head.
    """

    pad: int | None
    padded_positions: bool
    has_head: bool
    has_pair_head: bool

    def check_tokens(self, vocabulary: int, pad: int) -> None:
        """Whether a tokenizer fits the embeddings.

        Args:
            vocabulary: Number of the tokenizer's ids.
            pad: The tokenizer's padding id.

        Raises:
            DataError: If it has more ids than the encoder, or pads with another id where
                positions are counted by it.
        """
        if vocabulary > self.vocabulary:
            why = f"has {vocabulary:,} ids, {self.name} embeds {self.vocabulary:,}"
        elif self.padded_positions and pad != self.pad:
            why = f"pads with id {pad}, {self.name} counts positions by id {self.pad}"
        else:
            return
        raise DataError(
            f"the tokenizer {why}; use the checkpoint's own: leave --tokenizer out "
            "(tokenizer=None of an evaluator, tokenizer=pretrained.tokenizer_source of a corpus)"
        )

    def encoder(self, *, dropout: float | None = None) -> PreTrainedModel:
        """A fresh bare encoder with the pre-trained weights, float32, in training mode.

        Args:
            dropout: Probability for hidden states and attention weights alike; None = as
                configured.
        """
        body: PreTrainedModel = read_encoder(self.locate(), dropout)[0].base_model
        body.train()
        return body

    def masked_language_model(
        self, seed: int, *, pairs: bool = False, dropout: float | None = None
    ) -> MaskedLanguageModel:
        """The encoder under the checkpoint's own masked-language-model head.

        Args:
            seed: Seed of the weights that the checkpoint lacks: the whole head where
                `has_head` is False, the sentence-pair head where `has_pair_head` is.
            pairs: Whether to have a sentence-pair head.
            dropout: See `encoder`.
        """
        folder = self.locate()
        whole = read_encoder(folder, dropout)[0]
        made = MaskedLanguageModel(whole.base_model, seed=seed, pairs=pairs)
        parts = find_head_parts(whole)
        if self.has_head and parts is not None:
            set_head(made, parts)
        if self.has_pair_head and made.pooler is not None and made.pair is not None:
            with quiet():
                both, _ = read_model(BertForPreTraining, folder, dtype=torch.float32)
            made.pooler.load_state_dict(both.bert.pooler.dense.state_dict())
            made.pair.load_state_dict(both.cls.seq_relationship.state_dict())
        return made.train()


def open_pretrained(name_or_folder: str | Path) -> Pretrained:
    """Opens a checkpoint of an encoder: reads it once, checks that all of it fits.

    Args:
        name_or_folder: A folder with `config.json` and `*.safetensors` (what `save_pretrained`
            writes), or a name on the Hugging Face Hub. What was downloaded before is used as it
            is, without the network; `HF_HUB_OFFLINE=1` forbids downloads.

    Raises:
        DataError: If there is no such folder, the Hub cannot be reached, the weights are a
            pickle, damaged or do not fit the configuration, or it is no encoder.
        FileNotFoundError, MaskFormatError: If it was trained under a mask that is missing, or
            is another one than its configuration names.
        AttachError: If no mask can be put on it (such as MPNet, DeBERTa).
    """
    name, folder = find_folder(name_or_folder)
    digest = hash_files(folder)
    if own := check_masks(folder):
        listed = ", ".join(f"{mask!s:.80}" for mask in own.values())
        log.warning(
            "%s was trained under %s; what is judged takes its place, and masks.full() is another "
            "model than the one that was saved (ms.saved_masks gives its mask)",
            name,
            listed,
        )
    model, report = read_encoder(folder, None)
    body = model.base_model.eval()
    calls = probe(body, [body], None)
    table = find_position_table(body)
    offset = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    rows = body.config.max_position_embeddings if table is None else table.num_embeddings
    return Pretrained(
        name=name,
        folder=folder,
        digest=digest,
        architecture=body.config.model_type,
        layers=len({id(call.module) for call in calls}),
        heads=calls[0].heads,
        width=body.config.hidden_size,
        positions=rows - offset,
        vocabulary=body.get_input_embeddings().weight.shape[0],
        pad=body.config.pad_token_id,
        padded_positions=offset > 0,
        has_head=not report["missing_keys"]
        and not report["mismatched_keys"]
        and fits_our_head(model),
        has_pair_head=body.config.model_type == "bert"
        and {"bert.pooler.dense.weight", "cls.seq_relationship.weight"}
        <= set(report["unexpected_keys"]),
    )


def find_position_table(body: nn.Module) -> nn.Embedding | None:
    """The learned position embeddings; None where positions are computed (rotary, sinusoidal)."""
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module
    return None


# -- the prediction head -----------------------------------------------------------------------
HeadParts = tuple[nn.Linear, nn.LayerNorm, nn.Module, Tensor | None]  # dense, norm, act, bias


def find_head_parts(model: Any) -> HeadParts | None:
    """Dense layer, norm, activation (GELU where it is no module) and output bias of a masked
    language model of transformers, of which the last may be missing; None = another head."""
    out, inside = model.get_output_embeddings(), set(model.base_model.modules())
    if out is None or out.weight is not model.base_model.get_input_embeddings().weight:
        return None
    rest = [m for m in model.modules() if m not in inside and m is not out]
    rest = [m for m in rest if not list(m.children())]
    dense = [m for m in rest if isinstance(m, nn.Linear)]
    norms = [m for m in rest if isinstance(m, nn.LayerNorm)]
    others = [m for m in rest if m not in dense and m not in norms]
    acts = [m for m in others if not isinstance(m, nn.Dropout | nn.CrossEntropyLoss)]
    if len(dense) != 1 or len(norms) != 1 or len(acts) > 1:
        return None
    return dense[0], norms[0], acts[0] if acts else nn.GELU(), out.bias


def copy_head(source: HeadParts, target: HeadParts) -> None:
    """Copies a head's weights; a bias that the source lacks stays as it is."""
    target[0].load_state_dict(source[0].state_dict(), strict=False)
    target[1].load_state_dict(source[1].state_dict(), strict=False)
    if source[3] is not None and target[3] is not None:
        with torch.no_grad():
            target[3].copy_(source[3])


def set_head(made: MaskedLanguageModel, parts: HeadParts) -> MaskedLanguageModel:
    """Gives our model the head of one of transformers."""
    copy_head(parts, (made.transform, made.norm, made.activation, made.bias))
    made.norm.eps, made.activation = parts[1].eps, parts[2]
    return made


def fits_our_head(model: Any) -> bool:
    """Whether our head can stand for the model's own, with the same logits."""
    parts = find_head_parts(model)
    if parts is None:
        return False
    made = set_head(MaskedLanguageModel(model.base_model, seed=0), parts).eval()
    tokens = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        theirs: Tensor = model.eval()(input_ids=tokens).logits
        return torch.allclose(made(tokens).logits, theirs.flatten(0, 1), rtol=1e-3, atol=1e-3)
