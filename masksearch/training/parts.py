"""Settings that several evaluators have, in groups: a model's data, its training, its machine.

class MlmEvaluator(TextConfig, ModelConfig, EncoderConfig, MachineConfig, TrainingBase, ..): ...

An evaluator inherits the fields of the groups that it reads. So each setting is declared,
described and checked once, here, and type checkers know those of every evaluator. Nothing here
loads torch: the command line reads its options from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from masksearch.errors import UnknownNameError, check_name, did_you_mean
from masksearch.files import own_numbers
from masksearch.models.sizes import AnySize, size_name
from masksearch.tasks.text.files import absolute_if_local, make_absolute

Pretraining = Literal["mlm", "mlm+next", "mlm+order", "distil"]
Optimiser = Literal["adamw", "lamb"]
Schedule = Literal["linear", "sqrt"]
Precision = Literal["float32", "bfloat16"]
How = Literal["none", "recover", "train"]
LearnFrom = Literal["labels", "dense", "both", "hidden"]
Frozen = int | Literal["all"] | None
PLANTED = "recall"  # names planted recall in place of a text
RATES = (2e-3, 1e-4)  # peak learning rates: from random weights, and from a checkpoint's
FINETUNE_RATES = (5e-4, 5e-5)


# -- rules of fields ------------------------------------------------------------------------------
def at_least(least: int, default: Any) -> Any:
    """A field of numbers from `least` on; None may stand for none."""
    return field(default=default, metadata={"least": least})


def positive(default: float | None) -> Any:
    """A field of numbers above 0; None may stand for none."""
    return field(default=default, metadata={"above": 0})


def one_of(kind: Any, default: str | None, what: str = "") -> Any:
    """A field of the names of a `Literal`; errors call it `what`, or by its name."""
    return field(default=default, metadata={"names": get_args(kind), "what": what})


def _rules_of(kind: type) -> dict[str, Mapping[str, Any]]:
    """Name -> rule of its field; a class that gives a field another default keeps its rule."""
    declared = [vars(base).get("__dataclass_fields__", {}) for base in reversed(kind.__mro__)]
    every = [each for fields in declared for each in fields.values() if each.metadata]
    return {each.name: each.metadata for each in every}


# -- the groups ----------------------------------------------------------------------------------
class Default(int):
    """A default that differs from the same number given by name."""


class Settings:
    """The base of groups: refuses values that break the rule of their field."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in vars(cls):  # a dataclass keeps what its class has
            type.__setattr__(cls, "__repr__", Settings.__repr__)

    def __repr__(self) -> str:
        usual = {name: each.default for name, each in settings_fields(type(self)).items()}
        shown = [f"{n}={v!r}" for n, v in read_settings(self).items() if v != usual[n]]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        own_numbers(self)
        settings = vars(self)
        for name, rule in _rules_of(type(self)).items():
            if (value := settings.get(name)) is None:
                continue
            if "least" in rule and value < rule["least"]:
                raise ValueError(f"{name} must be at least {rule['least']}, got {value}")
            if "above" in rule and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
            if "names" in rule:
                check_name(rule["what"] or name, value, rule["names"])
        if "size" in settings:
            object.__setattr__(self, "size", size_name(settings["size"]))  # one for equal sizes


class PlantedText(Protocol):
    """A text of planted token ids, such as `Recall`."""

    @property
    def length(self) -> int:
        """Positions of a sequence."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""


AnyText = Path | str | PlantedText | None


@dataclass(frozen=True)
class TextConfig(Settings):
    """The data of a model: a text, and how it is tokenized and cut.

    Args:
        corpus: A text file (no table), a folder of `*.txt` files, or a dataset `hf:...`; see
            `masksearch.tasks.text.corpus.Corpus.load`. Its held-out part is judged, the rest
            trains. For decoders also planted recall: `"recall"` (a file of that name is
            `"./recall"`) or a `Recall` of masksearch-decoders.
        held_out: Text to hold out, or a share of this one, in (0, 1); default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences in a report.
        tokenizer: A tokenizer on disk, or its name on the Hugging Face Hub; None = the
            checkpoint's, or one trained on the text.
        vocabulary: Size of the vocabulary that is trained where `tokenizer` is None.
        length: Positions of a sequence. Planted recall has its own.
        cache: Folder of the token cache and of dense models; default: see `Corpus.load`.
    """

    corpus: AnyText = None
    _: KW_ONLY
    held_out: Path | str | float | None = None
    held_out_sequences: int = at_least(1, 512)
    tokenizer: str | Path | None = None
    vocabulary: int = at_least(1, 4096)
    length: int = at_least(1, 128)
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a text or a share in (0, 1), got {self.held_out}")
        make_absolute(self, "corpus", "held_out", "cache")  # workers may run in another folder
        make_absolute(self, "tokenizer", resolve=absolute_if_local)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The model that masks are put on: a checkpoint, or one with random weights.

    With `weights` the checkpoint's shape, vocabulary and (where none is given) tokenizer are
    taken; `size`, `architecture` and `initializer_range` are then ignored.

    Args:
        weights: A checkpoint to start from: a folder or a name on the Hugging Face Hub, see
            `masksearch.models.pretrained.open_pretrained`, of decoders also a GGUF file; None =
            random weights.
        size: Layers x width x heads of the model: "nano" (1x64x2), "tiny" (2x128x4), "mini"
            (4x256x4), "small" (4x512x8), "medium" (8x512x8), "base" (12x768x12), or your own as
            "4x128x4" or {"layers": 4, "width": 128, "heads": 4}. Equal sizes are one protocol.
        architecture: A name of `masksearch.models.encoders.ARCHITECTURES`, or of decoders
            `"llama"`, `"qwen3"` or `"gpt2"`.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width) (0.049 for "tiny").
    """

    weights: str | Path | None = None
    size: AnySize = "tiny"
    architecture: str = "bert"
    initializer_range: float | None = positive(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_absolute(self, "weights", resolve=absolute_if_local)

    @property
    def scratch(self) -> bool:
        """Whether the weights are random."""
        return self.weights is None


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Settings):
    """How a model is trained, and when it reports.

    Args:
        steps: Optimiser steps of pre-training. 0 judges a checkpoint under the mask as it is.
        batch: Sequences of a batch.
        micro_batches: Batches of an optimiser step: `batch * micro_batches` sequences.
        lr: Peak learning rate; None = 2e-3 from random weights, 1e-4 from a checkpoint.
        warmup: Share of the steps in which the learning rate rises (its warm-up), in [0, 1].
        schedule: How it falls then: `"linear"`, or `"sqrt"` of what is left (SparseBERT).
        optimiser: `"adamw"`, or `"lamb"` for large batches.
        reports: Number of reports; their steps double up to `steps`.
    """

    steps: int = at_least(0, 800)
    batch: int = at_least(1, 32)
    micro_batches: int = at_least(1, 1)
    lr: float | None = positive(None)
    warmup: float = 0.06
    schedule: Schedule = one_of(Schedule, "linear")
    optimiser: Optimiser = one_of(Optimiser, "adamw")
    reports: int = at_least(1, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Settings):
    """The pre-training of an encoder: its task, and its ways.

    Args:
        pretraining: `"mlm"`; `"mlm+next"` adds BERT's next-sentence prediction, `"mlm+order"`
            ALBERT's sentence order: two segments a sequence, with padding. `"distil"`: the
            model imitates the last hidden states that its checkpoint (`weights`) has without a
            mask, on text where nothing is hidden; it needs no head for masked words. The loss is
            then a share, 0 = the same states, 1 = zeros; see
            `masksearch.models.encoders.StateImitator`.
        whole_words: Whether all tokens of a word are masked together.
        dropout: Of hidden states and attention weights, in [0, 1); None = 0 from scratch, and
            what a checkpoint configures.
        compile: Whether pre-training is compiled (`torch.compile`); it pays in long runs. Graphs
            that the process has compiled before are dropped first.
    """

    pretraining: Pretraining = one_of(Pretraining, "mlm", "pre-training")
    whole_words: bool = False
    dropout: float | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class MachineConfig(Settings):
    """The machine that a model is trained on.

    Args:
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast; weights of a decoder that is judged
            as it is are bfloat16 too. Default: float32; of decoders bfloat16 on a GPU that
            computes in it.
        checkpoint_seconds: Wall time between two checkpoints, in the working folder, from which
            a killed run goes on; on a CPU it ends bit for bit as it would have.
    """

    device: str = "auto"
    precision: Precision | None = one_of(Precision, "float32")
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(Settings):
    """The weights that are trained under a mask, and what they learn from.

    Args:
        adapt: What is trained under a mask: `"none"`, `"recover"` (a dense model, for some steps)
            or `"train"` (from the checkpoint on), see the evaluators; None =
            `"none"` of a decoder with `weights`, else `"train"`.
        recover_lr: Peak learning rate of `"recover"`; None = `finetune_lr`, of a decoder 3e-4.
        learn_from: What `"recover"` of an encoder, and the gates of DAM on frozen weights, learn
            from: the `"labels"` (of decoders the next token), the logits of the `"dense"` model,
            of an encoder `"both"` in equal parts, or of a decoder its last `"hidden"` states.
    """

    adapt: How | None = one_of(How, None)
    recover_lr: float | None = positive(None)
    learn_from: LearnFrom = one_of(LearnFrom, "labels")


def refuse_missing(evaluator: Settings, name: str) -> None:
    """Refuses an evaluator without data that it cannot do without."""
    if not getattr(evaluator, name):
        raise TypeError(f"{type(evaluator).__name__} needs {name}=, which has no default")


def settings_fields(kind: Any) -> dict[str, Any]:
    """Name -> field of what a dataclass takes and shows."""
    return {each.name: each for each in fields(kind) if each.init and each.repr}


def read_settings(evaluator: Any) -> dict[str, Any]:
    """Name -> value of what a dataclass takes."""
    return {name: getattr(evaluator, name) for name in settings_fields(type(evaluator))}


def unknown_setting(kind: Any, name: str) -> UnknownNameError:
    """An error that names the nearest settings of an evaluator, and all others."""
    names = settings_fields(kind)
    hint = did_you_mean(name.rpartition(".")[2], names) or "."
    known = ", ".join(names)
    return UnknownNameError(f"{kind.__name__} has no setting {name!r}{hint} Known: {known}")
