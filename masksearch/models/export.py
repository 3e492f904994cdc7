"""A trained model as a Hugging Face folder, which any program of that world reads.

save_masked_language_model(model, "runs/big/model", tokenizer=corpus.tokenizer)
AutoModelForMaskedLM.from_pretrained("runs/big/model")   # and AutoTokenizer
open_pretrained("runs/big/model")                        # and masks can be put on it again
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from masksearch.errors import AttachError
from masksearch.models.checkpoints import head_parts, quiet
from masksearch.models.folders import write_model
from masksearch.models.heads import MaskedLanguageModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

ROLES = {
    "pad": "pad",
    "unknown": "unk",
    "cls": "cls",
    "sep": "sep",
    "mask": "mask",
}  # ours: theirs
WEIGHTS = "model.safetensors"


def save_masked_language_model(
    model: MaskedLanguageModel,
    folder: Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    special: Mapping[str, int] | None = None,
) -> Path:
    """Writes a model in the form of its architecture's masked-language model in transformers.

    The mask on it is no part of that form: it is left on the model, and not written. The weights
    are written beside their place and moved there last, so that a folder with
    `model.safetensors` is whole.

    Their head's layer norm takes its epsilon from the configuration, ours 1e-5: logits differ by
    that, about 1e-4 of their size. They are equal where the model came from a checkpoint, or
    went through `with_their_epsilon` before its training.

    Args:
        model: Of an encoder of any architecture that transformers has a masked-language model
            of; attached masks may stay on it.
        folder: Made where it is missing; what it holds under these names is replaced.
        tokenizer: Written as `tokenizer.json` and `tokenizer_config.json`; it gets the
            `[CLS] .. [SEP] .. [SEP]` template where it adds no special tokens by itself.
        special: Token ids by role (`masksearch.tasks.text.tokenizer.special_ids`); needed with a
            tokenizer.

    Returns:
        The folder.

    Raises:
        AttachError: If the head has no such form.
        OSError: If the folder cannot be written, such as on a full disk.
    """
    folder = Path(folder)
    whole = hugging_face_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = Path(name)
        write_model(whole, partial)
        if tokenizer is not None:
            if special is None:
                raise ValueError(
                    "a tokenizer is written with its special tokens; pass special="
                    "special_ids(tokenizer)"
                )
            save_tokenizer(tokenizer, special, model, partial)
        files = sorted(partial.iterdir(), key=lambda path: path.name.startswith("model"))
        for file in files:
            shutil.move(file, folder / file.name)
    return folder


def with_their_epsilon(model: MaskedLanguageModel) -> MaskedLanguageModel:
    """Gives the head's layer norm the epsilon that transformers' class has, in place."""
    config = model.config
    names = ("layer_norm_eps", "norm_eps")
    model.norm.eps = next((getattr(config, n) for n in names if hasattr(config, n)), 1e-12)
    return model


def positions_of(model: MaskedLanguageModel) -> int:
    """Longest sequence that the encoder takes, in tokens."""
    config = model.config
    rows = int(config.max_position_embeddings)
    return rows - config.pad_token_id - 1 if config.model_type == "roberta" else rows


def hugging_face_model(model: MaskedLanguageModel) -> Any:
    """Our model's weights in transformers' own class, on the CPU.

    `BertForPreTraining` for a BERT with a sentence-pair head; other architectures have no such
    class, and lose that head with a warning in the log.

    Raises:
        AttachError: If the head of that class does not compute what ours does.
    """
    from transformers import AutoModelForMaskedLM, BertForPreTraining

    own = model.config
    biases = ("classifier_bias", "norm_bias")  # ModernBERT's head has none, ours has
    settings = {name: True for name in biases if hasattr(own, name)}
    config = type(own).from_dict({**own.to_dict(), **settings})
    with quiet():
        made: Any = AutoModelForMaskedLM
        whole: Any = made.from_config(config, dtype=torch.float32)
    parts = head_parts(whole)
    if parts is None:
        raise AttachError(
            f"{type(whole).__name__} has another prediction head than MaskedLanguageModel; "
            "train an encoder such as bert, roberta, distilbert, electra or modernbert"
        )
    fill(whole.base_model, model.encoder)
    dense, norm, _, out = parts
    with torch.no_grad():
        for theirs, mine in (
            (dense.weight, model.transform.weight),
            (dense.bias, model.transform.bias),
            (norm.weight, model.norm.weight),
            (norm.bias, model.norm.bias),
            (out.bias, model.bias),
        ):
            theirs.copy_(mine)
    check_same(model, whole)
    if model.pooler is None or model.pair is None:
        return whole
    if config.model_type != "bert":
        log.warning(
            "the sentence-pair head is not written: transformers has a class with one for bert, "
            "not for %s",
            config.model_type,
        )
        return whole
    with quiet():
        both: Any = BertForPreTraining(config)
    state = whole.state_dict()
    state |= {f"bert.pooler.dense.{name}": part.cpu() for name, part in state_of(model.pooler)}
    state |= {f"cls.seq_relationship.{name}": part.cpu() for name, part in state_of(model.pair)}
    both.load_state_dict(state)
    return both


def state_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and tensors of a module."""
    return list(module.state_dict().items())


def fill(theirs: nn.Module, encoder: nn.Module) -> None:
    """Copies an encoder's weights; a pooler that only ours has is left out."""
    known = theirs.state_dict()
    state = {name: part.cpu() for name, part in state_of(encoder) if name in known}
    missing = sorted(name for name in set(known) - set(state) if not name.endswith("norm.bias"))
    if missing:
        raise AttachError(
            f"{type(theirs).__name__} has weights that this encoder lacks, such as {missing[0]}"
        )
    theirs.load_state_dict(state, strict=False)


def check_same(model: MaskedLanguageModel, whole: Any) -> None:
    """Whether the two heads compute the same from the same hidden states.

    Raises:
        AttachError: If they do not (another activation).
    """
    parts = head_parts(whole)
    assert parts is not None
    dense, _, activation, _ = parts
    drawn = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, model.transform.in_features, generator=drawn)
    place = model.transform.weight.device
    mine, theirs = model.activation, activation or nn.GELU()  # RoBERTa calls the function
    with torch.no_grad():
        inner = dense(hidden)
        expected = mine(inner.to(place)).cpu()
        found = theirs(inner)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise AttachError(
            f"{type(whole).__name__}'s head has the activation {theirs}, this model {mine}; "
            "give the encoder's configuration the same (gelu)"
        )


def save_tokenizer(
    tokenizer: Tokenizer, special: Mapping[str, int], model: MaskedLanguageModel, folder: Path
) -> None:
    """Writes `tokenizer.json` and the `tokenizer_config.json` that `AutoTokenizer` needs."""
    from tokenizers import Tokenizer as Made
    from tokenizers.processors import TemplateProcessing

    copied = Made.from_str(tokenizer.to_str())
    tokens = {role: str(tokenizer.id_to_token(number)) for role, number in special.items()}
    if copied.post_processor is None:
        first, last = tokens["cls"], tokens["sep"]
        copied.post_processor = TemplateProcessing(
            single=f"{first} $A {last}",
            pair=f"{first} $A {last} $B:1 {last}:1",
            special_tokens=[(first, special["cls"]), (last, special["sep"])],
        )
    copied.save(str(folder / "tokenizer.json"))
    segments = ["token_type_ids"] if model.takes_segments else []
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions_of(model),
        "model_input_names": ["input_ids", *segments, "attention_mask"],
        **{f"{ROLES[role]}_token": token for role, token in tokens.items()},
    }
    text = json.dumps(described, indent=1, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
