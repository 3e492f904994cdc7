"""Encoders from checkpoints: bare, under the head of masked words, or with the head of a task.

start = open_pretrained("models/my-bert")              # or "google-bert/bert-base-uncased"
start.shape(128)                                       # Shape(length=128, layers=12, heads=12)
corpus = Corpus.load(text, tokenizer=start.tokenizer_source, length=128)
start.check_tokens(corpus.vocabulary, corpus.special["pad"])
model = start.masked_language_model(seed=0)            # with the checkpoint's own head
classifier = SequenceClassifier(start.encoder(), 2, seed=0)
kind = tuned_kind(folder)                              # "SequenceClassification", or None
head = open_tuned(folder, kind, labels=("0", "1"))     # fine-tuned already; head(**batch).logits
hugging_face_model(model)                              # our model as transformers' own
model = TaskModels([sts_b, qnli])                      # two heads, each on an encoder of its own
attach(model, gates)                                   # gates of one encoder's layers and heads
model(task=torch.tensor(1), **batch).loss              # QNLI's model under the gates
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import (
    AutoModelForMaskedLM,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from masksearch.attention.live import FIRST_ROW
from masksearch.attention.probe import names_of, probe
from masksearch.errors import DataError
from masksearch.masks.shape import Shape
from masksearch.models.checkpoints import (
    CONFIG,
    StoredCheckpoint,
    check_masks,
    find_files,
    find_folder,
    hash_files,
    quiet,
    read_config,
    read_json,
    read_model,
)
from masksearch.models.encoders import MaskedLanguageModel, Output, class_output, span_output

log = logging.getLogger(__name__)
UNBOUNDED = 1 << 30  # positions of a model that names no limit


@dataclass(frozen=True)
class Pretrained(StoredCheckpoint):
    """An encoder's checkpoint, read and checked by `open_pretrained`.

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
        intermediate_size: As of a `Shape`; None where layers are no Transformer's, or repeated.
    """

    pad: int | None
    padded_positions: bool
    has_head: bool
    has_pair_head: bool
    intermediate_size: int | None = None

    def shape(self, length: int) -> Shape:
        """The sizes of a mask and of the model at that length; raises LengthError."""
        inner, shape = self.intermediate_size, super().shape(length)
        return replace(shape, hidden_size=self.width, intermediate_size=inner)

    def check_tokens(self, vocabulary: int, pad: int | None = None) -> None:
        """Raises DataError also if it pads with another id where positions are counted by it."""
        super().check_tokens(vocabulary)
        if self.padded_positions and pad != self.pad:
            why = f"pads with id {pad}, {self.name} counts positions by id {self.pad}"
            self.refuse_tokens(why)

    def encoder(self, *, dropout: float | None = None) -> PreTrainedModel:
        """A fresh bare encoder with the pre-trained weights, float32, in training mode.

        Args:
            dropout: Probability for hidden states and attention weights alike; None = as
                configured.
        """
        body: PreTrainedModel = _read_encoder(self.locate(), dropout)[0].base_model
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
        whole = _read_encoder(folder, dropout)[0]
        start = whole if self.has_head else whole.base_model
        made = MaskedLanguageModel(start, seed=seed, pairs=pairs)
        if self.has_pair_head and pairs:
            with quiet():
                config = read_config(folder)
                both, _ = read_model(
                    BertForPreTraining, folder, config=config, dtype=torch.float32
                )
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
        AttachError: If no mask can be put on it (such as Longformer, BigBird).
    """
    name, folder = find_folder(name_or_folder)
    digest = hash_files(folder)
    if masks := check_masks(folder):
        log.warning(
            "%s was trained under %s; what is judged takes its place, and masks.full() is another "
            "model than the one that was saved (ms.saved_masks gives its mask)",
            name,
            ", ".join(f"{mask!s:.80}" for mask in masks.values()),
        )
    model, report = _read_encoder(folder, None)
    body = model.base_model.eval()
    calls = probe(body, [body], None)
    positions, offset = count_positions(body)
    return Pretrained(
        name=name,
        folder=folder,
        digest=digest,
        architecture=body.config.model_type,
        layers=len({id(call.module) for call in calls}),
        heads=calls[0].heads,
        width=body.config.hidden_size,
        positions=positions,
        vocabulary=body.get_input_embeddings().weight.shape[0],
        pad=body.config.pad_token_id,
        padded_positions=offset > 0,
        has_head=not report["missing_keys"] and not report["mismatched_keys"],
        has_pair_head=body.config.model_type == "bert"
        and {"bert.pooler.dense.weight", "cls.seq_relationship.weight"}
        <= set(report["unexpected_keys"]),
        intermediate_size=_ffn_width(body, [call.module for call in calls]),
    )


def _ffn_width(body: PreTrainedModel, attention: Sequence[nn.Module]) -> int | None:
    """The `intermediate_size` of a `Shape`: a layer's linear weights beside the four projections
    of attention, over twice the hidden width; None where that is not what they are."""
    width, layer = body.config.hidden_size, re.match(r".*?\.\d+", names_of(body)[attention[0]])
    if layer is None or len({*attention}) < len(attention):
        return None
    inside = body.get_submodule(layer[0]).named_modules()
    linear = {name: module for name, module in inside if isinstance(module, nn.Linear)}
    weights = [each.weight for name, each in linear.items() if ".pos_" not in name]  # of no tokens
    if any(width not in weight.shape for weight in weights):
        return None
    beside = sum(weight.numel() for weight in weights) - 4 * width**2
    return beside // (2 * width) if beside > 0 else None


def count_positions(model: Any) -> tuple[int, int]:
    """The longest sequence of a model, and how many rows of learned positions stand before it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset, offset
    return getattr(model.config.get_text_config(), "max_position_embeddings", 0) or UNBOUNDED, 0


def _read_encoder(folder: Path, dropout: float | None) -> tuple[Any, dict[str, Any]]:
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
    _with_dropout(config, dropout)
    with quiet():
        return read_model(
            AutoModelForMaskedLM, folder, new_head=True, config=config, dtype=torch.float32
        )


def _with_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """The configuration, its dropouts set; each architecture has names of its own."""
    for name, value in config.to_dict().items():
        if dropout is not None and "dropout" in name and isinstance(value, int | float):
            setattr(config, name, dropout)
    return config


def hugging_face_model(model: MaskedLanguageModel) -> PreTrainedModel:
    """Our model's weights in transformers' own class, on the CPU, without the mask on it.

    `BertForPreTraining` for a BERT with a sentence-pair head; other architectures have no such
    class, and lose that head with a warning in the log.
    """
    config, kind = deepcopy(model.config), type(model.head)
    config._attn_implementation = None  # the class's own choice
    if model.pair is not None and config.model_type != "bert":
        title = kind.__name__
        log.warning("the sentence-pair head is not written: %s has no place for it", title)
    elif model.pair is not None:
        kind = BertForPreTraining
    with quiet():
        whole: Any = kind(config)
    whole.load_state_dict(model.head.state_dict(), strict=False)
    whole.base_model.load_state_dict(model.encoder.state_dict(), strict=False)  # no pooler there
    if kind is BertForPreTraining:
        whole.bert.pooler.dense.load_state_dict(model.pooler.state_dict())
        whole.cls.seq_relationship.load_state_dict(model.pair.state_dict())
    return cast(PreTrainedModel, whole)


# -- heads of a task ---------------------------------------------------------------------------
KINDS = {  # how transformers ends the class name of a model -> how a message says it
    "SequenceClassification": "a classifier of sequences (GLUE)",
    "QuestionAnswering": "one that points at answers (SQuAD)",
    "MultipleChoice": "a scorer of choices (SWAG)",
}


def tuned_kind(folder: Path) -> str | None:
    """Which head a checkpoint says that it has, a name of `KINDS`; None = another, or none."""
    named = read_json(folder / CONFIG).get("architectures") or []
    ends = [kind for name in named for kind in KINDS if str(name).endswith(f"For{kind}")]
    return ends[0] if ends else None


def own_classes(folder: Path) -> tuple[str, ...]:
    """The classes that a fine-tuned checkpoint names, by its numbers; none of a regression.

    Raises:
        DataError: If it answers several classes at once, or misnumbers them.
    """
    config = read_config(folder)
    if config.problem_type == "multi_label_classification":
        raise DataError(
            f"{folder / CONFIG}: the model answers several classes to one text "
            "(multi_label_classification), which no task here has"
        )
    names = _named_classes(folder, config)
    return () if len(names) == 1 else tuple(names)


def _named_classes(folder: Path, config: Any) -> list[str]:
    """The names of a configuration's classes, by their numbers."""
    numbers = range(config.num_labels)
    if sorted(config.id2label) != [*numbers]:
        raise DataError(
            f"{folder / CONFIG}: id2label numbers its classes from 0 to {len(numbers) - 1}, got "
            f"{', '.join(map(str, config.id2label))}; put them right, in the order of the outputs"
        )
    return [str(config.id2label[number]) for number in numbers]


def rows_read(
    folder: Path, rows: int | None, *, tuned: bool, kind: str | None = None
) -> int | None:
    """How many leading rows of the last layer reach the output of a head on a checkpoint.

    Args:
        folder: What transformers' `save_pretrained` wrote.
        rows: Rows of the last hidden states that our head reads; None = all.
        tuned: Whether the checkpoint's own head is taken in its place, if it has one.
        kind: A head of transformers' own, a name of `KINDS`, that is taken otherwise.

    Returns:
        1, or another `rows`; None = all, or not known: of types other than `FIRST_ROW` (ALBERT
        runs one layer again and again), and of heads that pool otherwise.
    """
    config = read_json(folder / CONFIG)
    kind = (tuned_kind(folder) if tuned else None) or kind
    if kind is not None:
        pooling = config.get("classifier_pooling", "cls"), config.get("summary_type", "first")
        rows = None if kind == "QuestionAnswering" or pooling != ("cls", "first") else 1
    return rows if config.get("model_type") in FIRST_ROW else None


class TunedHead(nn.Module):
    """A fine-tuned model of transformers, with the inputs and the `Output` of our heads.

    Args:
        whole: The model.
        kind: A name of `KINDS`.
        order: Which of the model's classes is our class 0, 1, ..; None = the same.
    """

    def __init__(self, whole: nn.Module, kind: str, order: Sequence[int] | None = None) -> None:
        super().__init__()
        self.whole, self.kind = whole, kind
        self.order = None if order is None else list(order)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.whole.config

    @property
    def encoder(self) -> nn.Module:
        """The encoder below the head."""
        return cast(nn.Module, self.whole.base_model)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> Output:
        """Logits and, given labels (of spans both positions), the mean loss: as our heads."""
        arguments = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if getattr(self.config, "type_vocab_size", 0) < 2:
            del arguments["token_type_ids"]
        if self.kind == "MultipleChoice" and input_ids.ndim == 2:  # one item without a batch
            arguments = {n: part if part is None else part[None] for n, part in arguments.items()}
            input_ids = input_ids[None]
        out = self.whole(input_ids=input_ids, **arguments)
        if self.kind == "QuestionAnswering":
            logits = torch.stack([out.start_logits, out.end_logits], -1)
            return span_output(logits, attention_mask, start_positions, end_positions)
        logits = out.logits if self.order is None else out.logits[:, self.order]
        return class_output(logits, labels)


def begin_tuned(
    folder: Path, kind: str, labels: Sequence[str], *, seed: int, dropout: float | None = None
) -> TunedHead:
    """A checkpoint under a new head of transformers' own class, in training mode, float32.

    Args:
        folder: What transformers' `save_pretrained` wrote.
        kind: Which head, a name of `KINDS`.
        labels: The task's classes, in the order of our class numbers; none = a regression.
        seed: Of the weights that the checkpoint lacks.
        dropout: As of `Pretrained.encoder`; of the head, too.
    """
    config = _with_dropout(read_config(folder), dropout)
    names = list(labels) or ["score"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: at for at, name in enumerate(names)}
    config.problem_type = "single_label_classification" if labels else "regression"
    loader = getattr(transformers, f"AutoModelFor{kind}")
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = read_model(loader, folder, new_head=True, config=config, dtype=torch.float32)[0]
    return TunedHead(model, kind).train()


def open_tuned(
    folder: Path,
    kind: str,
    labels: Sequence[str] | None = None,
    known: Sequence[str] = (),
    *,
    dropout: float | None = None,
) -> TunedHead:
    """The fine-tuned model of a folder, in training mode, float32.

    Args:
        folder: What transformers' `save_pretrained` wrote.
        kind: Which head is needed, a name of `KINDS`.
        labels: The task's classes, in the order of our class numbers; none = a regression; None =
            the head is not one of classes. Where the folder names its classes otherwise than
            LABEL_0, LABEL_1, .., they are found by their names.
        known: The same classes by other names that checkpoints have; none = no others.
        dropout: As of `begin_tuned`.

    Raises:
        DataError: If it cannot be read, its head is missing or is another one, the classes are
            not those of the task, or a weight is not finite.
    """
    there = tuned_kind(folder)
    if there is not None and there != kind:
        raise DataError(
            f"{folder} holds {KINDS[there]}, and this task needs {KINDS[kind]}; give a model that "
            "was fine-tuned on the task, or a pre-trained one, which is fine-tuned here"
        )
    loader = getattr(transformers, f"AutoModelFor{kind}")
    config = _with_dropout(read_config(folder), dropout)
    with quiet():
        model, report = read_model(
            loader, folder, new_head=True, config=config, dtype=torch.float32
        )
    unfit = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if unfit:
        raise DataError(
            f"{folder}: config.json names {type(model).__name__}, but its head is missing "
            f"({min(unfit)}); save the whole model (model.save_pretrained), or give a pre-trained "
            "one, which is fine-tuned here"
        )
    order = None if labels is None else _match_classes(folder, model.config, labels, known)
    return TunedHead(model, kind, order).train()


def _match_classes(
    folder: Path, config: Any, labels: Sequence[str], known: Sequence[str]
) -> list[int] | None:
    """Which of a model's classes is each of ours; None = the same numbers.

    Raises:
        DataError: If there are more or fewer, or they have other names.
    """
    names = _named_classes(folder, config)
    classes = max(1, len(labels))
    if len(names) != classes:
        says = f"the classes {', '.join(labels)}" if labels else "one score"
        raise DataError(
            f"{folder} has a head of {len(names)} outputs, and the task {classes} ({says}); give "
            "the model of this task, or a pre-trained one, which is fine-tuned here"
        )
    plain = [f"LABEL_{number}" for number in range(classes)]
    if not labels or names == plain or names == list(labels):
        return None
    for ours in (labels, known, plain):
        unlike = len({each.lower() for each in ours}) == classes  # whatever their case
        theirs, mine = ([n.lower() if unlike else n for n in part] for part in (names, ours))
        if sorted(theirs) == sorted(mine):
            return [theirs.index(each) for each in mine]
    if all(label.isdecimal() for label in labels):  # numbers in the files: the model's own names
        return None
    raise DataError(
        f"{folder} names its classes {', '.join(names)}, and the task {', '.join(labels)}; set "
        "id2label in config.json to the task's names, in the model's order"
    )


# -- several tasks as one -----------------------------------------------------------------------
class TaskModels(nn.Module):
    """Models of one architecture; every batch names one.

    All are computed by the modules of the first one's encoder, with their own weights in them,
    so what is attached to that encoder acts on each.

    Args:
        models: Heads (`head.encoder`, `head(**batch).loss`), one a task. Encoders may be one and
            the same object, which is then trained on all tasks. The encoders of all but the first
            are taken off their heads; their weights stay as they are.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        first = models[0].get_submodule("encoder")
        self.own: list[dict[str, Tensor]] = []  # weights to compute each task with
        for model in models:
            encoder = model.get_submodule("encoder")
            parts: dict[str, Tensor] = {}
            if encoder is not first:
                encoder.requires_grad_(False)
                parts = {f"encoder.{n}": part for n, part in encoder.named_parameters()}
                parts |= {f"encoder.{n}": part for n, part in encoder.named_buffers()}
                model.encoder = first
            self.own.append(parts)
        self.models = nn.ModuleList(models)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        task: Tensor | None = None,
        target: Tensor | None = None,
        **inputs: Any,
    ) -> Output:
        """The output of a task's model.

        Args:
            input_ids: Token ids, shaped as that task's head takes them.
            attention_mask: 1 for tokens, 0 for padding, shaped likewise.
            task: Number of the model, a tensor without axes; None = the first.
            target: Logits that are to be learnt in place of labels, shaped as the model's; by its
                own `distance` from them, or else by `distance_of_logits`.
            inputs: Its other inputs, labels included.
        """
        number = 0 if task is None else int(task)
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        head = self.models[number]
        output: Output = functional_call(head, self.own[number], kwargs=arguments)
        if target is None:
            return output
        distance: Any = getattr(head, "distance", distance_of_logits)
        return Output(output.logits, distance(output.logits, target))


def distance_of_logits(logits: Tensor, target: Tensor) -> Tensor:
    """How far a model's logits are from those of the model that it learns from, a scalar.

    Args:
        logits: `[rows, classes]`; `[rows, 1]` of a regression; `[rows, positions, 2]` of spans.
        target: The same shape.

    Returns:
        The Kullback-Leibler divergence in nats from the target's distribution over classes (over
        positions, summed over start and end), a mean over rows; of a regression the mean squared
        distance. Positions with the logit -inf (padding) count nothing.
    """
    if logits.ndim == 2 and logits.shape[-1] == 1:
        return F.mse_loss(logits.float(), target.float())
    axis = 1 if logits.ndim == 3 else -1
    log_target = target.float().log_softmax(axis)
    gap = (log_target - logits.float().log_softmax(axis)).masked_fill(target == -float("inf"), 0.0)
    return (log_target.exp() * gap).sum() / len(logits)
