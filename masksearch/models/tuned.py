"""Checkpoints that were fine-tuned already: a folder with an encoder and the head of one task.

kind = tuned_kind(folder)                         # "SequenceClassification", or None
head = open_tuned(folder, kind, labels=("0", "1"))
head(**batch).logits
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from masksearch.errors import DataError
from masksearch.models.checkpoints import CONFIG, quiet, read_model
from masksearch.models.heads import Output, class_output, span_output
from masksearch.models.manifest import read_json

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


FIRST_ROW = (  # model types of which these heads read the first row, [CLS], as BERT's do
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert"),
)


def rows_read(folder: Path, own: int | None, *, tuned: bool) -> int | None:
    """How many leading rows of the last layer reach the output of a head on a checkpoint.

    Args:
        folder: What transformers' `save_pretrained` wrote.
        own: Rows of the last hidden states that our head reads; None = all.
        tuned: Whether the checkpoint's own head is taken in its place, if it has one.

    Returns:
        1, or another `own`; None = all, or not known: of types other than `FIRST_ROW` (ALBERT
        runs one layer again and again), and of heads that pool otherwise.
    """
    config = read_json(folder / CONFIG)
    kind = tuned_kind(folder) if tuned else None
    if kind is not None:
        pooling = config.get("classifier_pooling", "cls"), config.get("summary_type", "first")
        points = kind == "QuestionAnswering" or pooling != ("cls", "first")
        own = None if points else 1
    return own if config.get("model_type") in FIRST_ROW else None


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
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if getattr(self.config, "type_vocab_size", 0) < 2:
            del given["token_type_ids"]
        if self.kind == "MultipleChoice" and input_ids.ndim == 2:  # one item without a batch
            given = {n: part if part is None else part[None] for n, part in given.items()}
            input_ids = input_ids[None]
        out = self.whole(input_ids=input_ids, **given)
        if self.kind == "QuestionAnswering":
            logits = torch.stack([out.start_logits, out.end_logits], -1)
            return span_output(logits, attention_mask, start_positions, end_positions)
        logits = out.logits if self.order is None else out.logits[:, self.order]
        return class_output(logits, labels)


def open_tuned(folder: Path, kind: str, labels: Sequence[str] | None = None) -> TunedHead:
    """The fine-tuned model of a folder, in training mode, float32.

    Args:
        folder: What transformers' `save_pretrained` wrote.
        kind: Which head is needed, a name of `KINDS`.
        labels: The task's classes, in the order of our class numbers; none = a regression; None =
            the head is not one of classes. Where the folder names its classes otherwise than
            LABEL_0, LABEL_1, .., they are found by their names.

    Raises:
        DataError: If it cannot be read, its head is missing or is another one, the classes are
            not those of the task, or a weight is not finite.
    """
    found = tuned_kind(folder)
    if found is not None and found != kind:
        raise DataError(
            f"{folder} holds {KINDS[found]}, and this task needs {KINDS[kind]}; give a model that "
            "was fine-tuned on the task, or a pre-trained one, which is fine-tuned here"
        )
    loader = getattr(transformers, f"AutoModelFor{kind}")
    with quiet():
        model, report = read_model(loader, folder, new_head=True, dtype=torch.float32)
    unfit = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if unfit:
        raise DataError(
            f"{folder}: config.json names {type(model).__name__}, but its head is missing "
            f"({min(unfit)}); save the whole model (model.save_pretrained), or give a pre-trained "
            "one, which is fine-tuned here"
        )
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise DataError(
                f"{folder}: the weights {name} are not finite; fine-tune the model again, at a "
                "lower rate"
            )
    order = None if labels is None else match_classes(folder, model.config, labels)
    return TunedHead(model, kind, order).train()


def match_classes(folder: Path, config: Any, labels: Sequence[str]) -> list[int] | None:
    """Which of a model's classes is each of ours; None = the same numbers.

    Raises:
        DataError: If there are more or fewer, or they have other names.
    """
    names = [str(config.id2label[number]) for number in range(config.num_labels)]
    wanted = max(1, len(labels))
    if len(names) != wanted:
        says = f"the classes {', '.join(labels)}" if labels else "one score"
        raise DataError(
            f"{folder} has a head of {len(names)} outputs, and the task {wanted} ({says}); give "
            "the model of this task, or a pre-trained one, which is fine-tuned here"
        )
    plain = [f"LABEL_{number}" for number in range(wanted)]
    if not labels or names == plain or names == list(labels):
        return None
    folded, ours = [name.lower() for name in names], [label.lower() for label in labels]
    if sorted(folded) == sorted(ours):
        return [folded.index(label) for label in ours]
    if all(label.isdecimal() for label in labels):  # numbers in the files: the model's own names
        return None
    raise DataError(
        f"{folder} names its classes {', '.join(names)}, and the task {', '.join(labels)}; set "
        "id2label in config.json to the task's names, in the model's order"
    )
