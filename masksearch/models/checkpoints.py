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
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, StrictDataclassError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, BertForPreTraining, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

import masksearch.attention.interface  # noqa: F401  (registers what the probe needs)
from masksearch.attention.probe import probe
from masksearch.contracts import Shape
from masksearch.errors import AttachError, DataError, LengthError
from masksearch.models.heads import MaskedLanguageModel

SECONDS = 5.0  # for the Hub's first answer
FILES = ["*.json", "model*.safetensors", "*.txt", "*.model"]  # downloaded: no pickle, no code
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
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses transformers' messages and bars; the global generator stays as it was."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


# -- files -------------------------------------------------------------------------------------
def find_local_folder(name: str | Path) -> Path | None:
    """The absolute folder of that name; None where it can only be a Hub name.

    Raises:
        DataError: If it is a file, or can only be a folder and does not exist.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_file():
        raise DataError(f"{path} is a file; give the folder that holds it beside config.json")
    spelled = str(name)
    if isinstance(name, Path) or spelled.startswith((".", "~", os.sep)) or spelled.count("/") > 1:
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
    try:
        cached = Path(
            snapshot_download(name, revision=revision, allow_patterns=FILES, local_files_only=True)
        )
        read_configuration(cached)
        weight_files(cached)
        return cached
    except (OSError, DataError):
        pass  # not in the cache, or not whole
    except ValueError as error:  # a name that the Hub cannot have
        raise DataError(
            f"no such folder, and no Hub name either: {name!r}; give a folder with config.json "
            "and model.safetensors, or a name such as google-bert/bert-base-uncased"
        ) from error
    try:
        found = HfApi().model_info(name, revision=revision, timeout=SECONDS)  # one try, no retries
        folder = snapshot_download(name, revision=found.sha, allow_patterns=FILES)
    except (OSError, HTTPError) as error:  # HTTPError: of the Hub client's own transport
        raise DataError(
            f"no folder {name!r}, and the Hugging Face Hub gave no checkpoint of that name "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "without a network, give a local folder with config.json and model.safetensors "
            "(--weights FOLDER)"
        ) from error
    return Path(folder)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, by name.

    Raises:
        DataError: If there is none, or one that the index names is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
        if pickles:
            raise DataError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any code "
                "when it is read, so it is refused; where you trust its source, convert it: "
                "AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise DataError(
            f"{folder} holds no model.safetensors; give the folder that save_pretrained wrote, or "
            "a Hub checkpoint that has safetensors (pickled weights are not downloaded)"
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not an index of safetensors files: {error!r}") from error
    files = [folder / Path(name).name for name in names]
    for file in files:
        if not file.is_file():
            raise DataError(f"{index.name} names {file.name}, which {folder} does not hold")
    return [index, *files]


def read_configuration(folder: Path) -> dict[str, Any]:
    """`config.json` as plain data.

    Raises:
        DataError: If it is missing or cannot be read.
    """
    path = folder / CONFIG
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


def refuse_other_weights(folder: Path) -> None:
    """Refuses what makes transformers read other weights than `weight_files`.

    Raises:
        DataError: If configuration or files name such weights.
    """
    if read_configuration(folder).get("transformers_weights") is not None:
        raise DataError(
            f"{folder / CONFIG} names weights of its own choice (transformers_weights); "
            "only model.safetensors and its shards are read, remove that entry"
        )
    if found := sorted(path.name for pattern in OTHERS for path in folder.glob(pattern)):
        raise DataError(
            f"{folder} holds {found[0]}, for which transformers would take other weights than "
            "those of model.safetensors and its shards; remove it"
        )


def encoder_config(folder: Path) -> Any:
    """The configuration of an encoder's checkpoint, a fresh object each time.

    Raises:
        DataError: If there is none, it cannot be read, or it is not that of an encoder.
    """
    file = folder / CONFIG
    read_configuration(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except UNREADABLE as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    kind = config.model_type
    decodes = getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or decodes:
        raise DataError(
            f"{file}: {kind!r} is not an encoder that predicts masked tokens; give one such as "
            "bert, roberta, distilbert, electra, albert or modernbert"
        )
    return config


def read_model(cls: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A folder's model in that class, and transformers' report of what was missing or left over.

    Args:
        cls: With a `from_pretrained`.
        folder: Holds configuration and weights; only safetensors are read, and no code is run.
        options: Of `from_pretrained`.

    Raises:
        DataError: If they cannot be read, or are not in safetensors files.
    """
    refuse_other_weights(folder)
    weight_files(folder)
    fixed = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    try:
        model, report = cls.from_pretrained(folder, **options, **fixed, output_loading_info=True)
    except UNREADABLE as error:
        raise DataError(
            f"{folder}: the model cannot be read as {cls.__name__}: {error}; the files are "
            "damaged, not whole or of different models, or an option does not fit them"
        ) from error
    return model, report


DROPOUTS = (  # by architecture, the configuration's names of one thing
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint of an encoder, described; the weights stay on disk until they are asked for.

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
        pad: The configuration's padding id; None where it names none.
        padded_positions: Whether positions are counted by what is not `pad` (RoBERTa).
        has_head: Whether the checkpoint holds a masked-language-model head.
        has_pair_head: Whether it holds BERT's next-sentence head.
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
    pad: int | None
    padded_positions: bool
    has_head: bool
    has_pair_head: bool

    def shape(self, length: int) -> Shape:
        """What a mask is lowered to at that length.

        Raises:
            LengthError: If the encoder has fewer positions.
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
                "encoder was trained with into it: another one's ids mean other words"
            )
        return str(folder)

    def check_tokens(self, vocabulary: int, pad: int) -> None:
        """Whether a tokenizer fits the embeddings.

        Args:
            vocabulary: Number of the tokenizer's ids.
            pad: The tokenizer's padding id.

        Raises:
            DataError: If it has more ids than the encoder, or pads with another id where
                positions are counted by it.
        """
        use = (
            "use the checkpoint's own tokenizer: leave --tokenizer out (tokenizer=None of an "
            "evaluator, tokenizer=pretrained.tokenizer_source of a corpus)"
        )
        if vocabulary > self.vocabulary:
            raise DataError(
                f"the tokenizer has {vocabulary:,} ids, {self.name} embeds "
                f"{self.vocabulary:,}; {use}"
            )
        if self.padded_positions and pad != self.pad:
            raise DataError(
                f"the tokenizer pads with id {pad}, {self.name} counts positions by id "
                f"{self.pad}; {use}"
            )

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
        if self.has_head:
            copy_head(made, whole)
        if pairs and self.has_pair_head:
            with quiet():
                both, _ = read_model(BertForPreTraining, folder, dtype=torch.float32)
            assert made.pooler is not None
            assert made.pair is not None
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
    """
    folder = find_local_folder(name_or_folder)
    name = str(name_or_folder) if folder is None else str(folder)
    folder = download_checkpoint(name) if folder is None else folder
    encoder_config(folder)  # before the weights are read for the digest
    digest = hash_files(folder)
    model, report = read_encoder(folder, None)
    body = model.base_model.eval()
    try:
        calls = probe(body, [body], None)
        layers, heads = len({id(call.module) for call in calls}), calls[0].heads
    except AttachError:  # no mask can be put on it, but it can be fine-tuned
        layers, heads = body.config.num_hidden_layers, body.config.num_attention_heads
    table = find_position_table(body)
    offset = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    rows = body.config.max_position_embeddings if table is None else table.num_embeddings
    return Pretrained(
        name=name,
        folder=folder,
        digest=digest,
        architecture=body.config.model_type,
        layers=layers,
        heads=heads,
        width=body.config.hidden_size,
        positions=rows - offset,
        vocabulary=body.get_input_embeddings().weight.shape[0],
        pad=body.config.pad_token_id,
        padded_positions=offset > 0,
        has_head=not report["missing_keys"] and fits_our_head(model),
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


def hash_files(folder: Path) -> str:
    """Hash of configuration and weights, computed once a process and state of the files."""
    files = (folder / "config.json", *weight_files(folder))
    return hash_once(tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=16)
def hash_once(files: tuple[tuple[Path, int, int], ...]) -> str:
    """16 hexadecimal digits of SHA-256 over the files' names and bytes."""
    total = hashlib.sha256()
    for file, _, _ in files:
        with file.open("rb") as handle:
            part = hashlib.file_digest(handle, "sha256").hexdigest()
        total.update(f"{file.name}|{part}|".encode())
    return total.hexdigest()[:16]


def read_encoder(folder: Path, dropout: float | None) -> tuple[Any, dict[str, Any]]:
    """The encoder under its masked-language-model head, and what was missing or left over.

    Raises:
        DataError: If the weights are damaged or do not fit the configuration.
    """
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    config = encoder_config(folder)
    for name in DROPOUTS:
        if dropout is not None and hasattr(config, name):
            setattr(config, name, dropout)
    with quiet():
        model, report = read_model(
            AutoModelForMaskedLM,
            folder,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    start = f"{model.base_model_prefix}."
    unfit = [
        f"{name} (stored {list(a)}, expected {list(b)})"
        for name, a, b in sorted(report["mismatched_keys"], key=str)
    ]
    unfit += [f"{n} (missing)" for n in sorted(report["missing_keys"]) if n.startswith(start)]
    if unfit := unfit or list(report["error_msgs"]):
        raise DataError(
            f"{folder}: config.json and the weights do not fit in {len(unfit)} tensors, such as "
            f"{unfit[0]}; take both files from the same checkpoint"
        )
    return model, report


# -- the prediction head -----------------------------------------------------------------------
def fits_our_head(model: Any) -> bool:
    """Whether our head can stand for the model's own, with the same logits."""
    if find_head_parts(model) is None:
        return False
    made = MaskedLanguageModel(model.base_model, seed=0).eval()
    copy_head(made, model)
    tokens = torch.ones(1, 4, dtype=torch.int64)
    with torch.no_grad():
        theirs: Tensor = model.eval()(input_ids=tokens).logits
        return torch.allclose(made(tokens).logits, theirs.flatten(0, 1), rtol=1e-3, atol=1e-3)


def find_head_parts(model: Any) -> tuple[nn.Linear, nn.LayerNorm, nn.Module | None, Any] | None:
    """Dense layer, norm, activation and output layer beyond the encoder; None = another form."""
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
    return dense[0], norms[0], acts[0] if acts else None, out


def copy_head(made: MaskedLanguageModel, model: Any) -> None:
    """Copies the checkpoint's head into ours; a bias that it lacks stays zero."""
    parts = find_head_parts(model)
    assert parts is not None
    dense, norm, activation, out = parts
    with torch.no_grad():
        for mine, theirs in head_pairs(made, dense, norm, out):
            if theirs is not None:
                mine.copy_(theirs)
    made.norm.eps = norm.eps
    if activation is not None:
        made.activation = activation


def head_pairs(
    ours: MaskedLanguageModel, dense: nn.Linear, norm: nn.LayerNorm, out: Any
) -> list[tuple[Tensor, Tensor | None]]:
    """Each parameter of our head with that of transformers' head, of the same shape."""
    return [
        (ours.transform.weight, dense.weight),
        (ours.transform.bias, dense.bias),
        (ours.norm.weight, norm.weight),
        (ours.norm.bias, norm.bias),
        (ours.bias, out.bias),
    ]
