"""A model's data and training: the four frozen parts that evaluators are made of.

text, training = Text("wikitext-2", length=64), Training(steps=800)
MlmEvaluator(text=text, training=training)
MlmEvaluator("wikitext-2", length=64, steps=800)     # the same, by flat names

A part has one field for each setting, with its one description. `assemble` knows which part owns
a flat name. Nothing here loads torch: the command line reads its options from these classes.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from masksearch.errors import UnknownNameError, check_name, unknown_name
from masksearch.files import own_numbers
from masksearch.tasks.text.files import absolute_if_local, make_absolute

Pretraining = Literal["mlm", "mlm+next", "mlm+order", "distil"]
Optimiser = Literal["adamw", "lamb"]
Schedule = Literal["linear", "sqrt"]
Precision = Literal["float32", "bfloat16"]
How = Literal["none", "recover", "train"]
LearnFrom = Literal["labels", "dense", "both", "hidden"]
Frozen = int | Literal["all"] | None
PLANTED = "recall"  # names planted recall in place of a text
RATES = {  # peak learning rates: from random weights, and from a checkpoint's
    "lr": (2e-3, 1e-4),
    "finetune_lr": (5e-4, 5e-5),
}


# -- sizes of models -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Layers, hidden width and heads of an encoder; the feed-forward part is 4 x width.

    Raises:
        ValueError: If one is no whole number of at least 1, or the heads do not share the width
            evenly.

    >>> str(Size(layers=4, width=128, heads=4))
    '4x128x4'
    """

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        own_numbers(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{each.name} is a whole number of at least 1, got {value!r}")
        if self.width % self.heads:
            below = self.width - self.width % self.heads
            near = " or ".join(str(width) for width in (below, below + self.heads) if width)
            raise ValueError(
                f"the width of a model is a multiple of its heads, got width {self.width} with "
                f"{self.heads} heads; {near} is"
            )

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}x{self.heads}"


AnySize = str | Size | Mapping[str, int]  # as people give it
WRITTEN = re.compile(r"(\d+) *x *(\d+) *x *(\d+)")  # layers x width x heads

SIZES = {
    "nano": Size(layers=1, width=64, heads=2),  # the planted corpus
    "tiny": Size(layers=2, width=128, heads=4),
    "mini": Size(layers=4, width=256, heads=4),
    "small": Size(layers=4, width=512, heads=8),
    "medium": Size(layers=8, width=512, heads=8),
    "base": Size(layers=12, width=768, heads=12),  # SparseBERT's model
}


def find_size(size: AnySize) -> Size:
    """The size that is meant: a name of `SIZES`, text such as "4x128x4" (layers x width x heads),
    a mapping with these three, or a `Size`.

    Raises:
        UnknownNameError: If a text is neither a name nor such numbers.
        ValueError: If a mapping has other keys, or no model has that size; see `Size`.

    >>> find_size({"layers": 4, "width": 128, "heads": 4})
    Size(layers=4, width=128, heads=4)
    """
    if isinstance(size, Size):
        return size
    if isinstance(size, str):
        written = WRITTEN.fullmatch(size.strip())
        if written is not None:
            return Size(*map(int, written.groups()))
        if size not in SIZES:
            example = "layers x width x heads such as 4x128x4"
            raise unknown_name("model size", size, [*SIZES, example])
        return SIZES[size]
    if not isinstance(size, Mapping) or set(size) != {"layers", "width", "heads"}:
        raise ValueError(
            'a model size is a name, "4x128x4" or {"layers": 4, "width": 128, "heads": 4}, got '
            f"{size!r}"
        )
    return Size(**size)


def size_name(size: AnySize) -> str:
    """The one text of a size: the name that it has in `SIZES`, or its numbers.

    >>> size_name("1x64x2"), size_name({"layers": 4, "width": 128, "heads": 4})
    ('nano', '4x128x4')
    """
    sizes = find_size(size)
    return next((name for name, named in SIZES.items() if named == sizes), str(sizes))


def initial_spread(width: int) -> float:
    """Standard deviation of the initial weights at a width: BERT's 0.02 at 768, as 1/sqrt."""
    return 0.02 * math.sqrt(768 / width)


# -- the parts -----------------------------------------------------------------------------------
def usually(value: Any) -> Any:
    """A field that has this default, unless the evaluator that its part is given to has another
    one (`defaults`); in a part alone it is None."""
    return field(default=None, metadata={"usually": value})


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
class Text:
    """The data of a model: a text, how it is tokenized and cut, and what is predicted of it.

    Args:
        corpus: A text file, a folder of `*.txt` files, or a dataset `hf:...`; see
            `masksearch.tasks.text.corpus.Corpus.load`. Its held-out part is judged, the rest
            trains. For decoders also planted recall: `"recall"` (a file of that name is
            `"./recall"`) or a `masksearch.Recall`.
        held_out: Text to hold out, or a share of this one, in (0, 1); default: see `Corpus.load`.
        held_out_sequences: Largest number of held-out sequences in a report.
        tokenizer: A tokenizer on disk, or its name on the Hugging Face Hub; None = the
            checkpoint's, or one trained on the text.
        vocabulary: Size of the vocabulary that is trained where `tokenizer` is None.
        length: Positions of a sequence. Planted recall has its own.
        pretraining: `"mlm"`; `"mlm+next"` adds BERT's next-sentence prediction, `"mlm+order"`
            ALBERT's sentence order: two segments a sequence, with padding. `"distil"`: the
            model imitates the last hidden states that its checkpoint (`weights`) has without a
            mask, on text where nothing is hidden; it needs no head for masked words. The loss is
            then a share, 0 = the same states, 1 = zeros; see
            `masksearch.models.encoders.StateImitator`.
        whole_words: Whether all tokens of a word are masked together.
        cache: Folder of the token cache and of dense models; default: see `Corpus.load`.

    Raises:
        UnknownNameError: If there is no such pre-training.
        ValueError: If a number is less than 1, or planted recall is given another length, a
            tokenizer or text to hold out.
    """

    corpus: AnyText = None
    _: KW_ONLY
    held_out: Path | str | float | None = None
    held_out_sequences: int = usually(512)
    tokenizer: str | Path | None = None
    vocabulary: int = 4096
    length: int = usually(128)
    pretraining: Pretraining = "mlm"
    whole_words: bool = False
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        check_least(1, held_out_sequences=self.held_out_sequences, length=self.length)
        check_least(1, vocabulary=self.vocabulary)
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a text or a share in (0, 1), got {self.held_out}")
        check_name("pre-training", self.pretraining, get_args(Pretraining))
        if self.corpus == PLANTED:
            from masksearch.tasks.recall import Recall

            made = Recall() if self.length is None else Recall.of_length(self.length)
            object.__setattr__(self, "corpus", made)
        make_absolute(self, "corpus", "held_out", "cache")  # workers may run in another folder
        make_absolute(self, "tokenizer", resolve=absolute_if_local)
        if self.corpus is None or isinstance(self.corpus, Path | str):
            return
        if self.length not in (None, length := self.corpus.length):
            raise ValueError(
                f"this planted recall has {length} positions, got length={self.length}; leave "
                "length out"
            )
        object.__setattr__(self, "length", length)
        refuse_beside_recall(tokenizer=self.tokenizer, held_out=self.held_out)


@dataclass(frozen=True)
class Model:
    """The model that masks are put on: a checkpoint, or one with random weights.

    With `weights` the checkpoint's shape, vocabulary and (where none is given) tokenizer are
    taken; `size`, `architecture`, `kv_heads` and `initializer_range` are then ignored.

    Args:
        weights: A checkpoint to start from: a folder or a name on the Hugging Face Hub, see
            `masksearch.models.checkpoints.open_pretrained`, of decoders also a GGUF file; None =
            random weights.
        size: Layers x width x heads of the model: "nano" (1x64x2), "tiny" (2x128x4), "mini"
            (4x256x4), "small" (4x512x8), "medium" (8x512x8), "base" (12x768x12), or your own as
            "4x128x4" or {"layers": 4, "width": 128, "heads": 4}. Equal sizes are one protocol.
        architecture: A name of `masksearch.models.encoders.ARCHITECTURES`, or of decoders
            `"llama"`, `"qwen3"` or `"gpt2"`.
        initializer_range: Standard deviation of the initial weights; None = BERT's 0.02 at a
            width of 768, scaled by 1 / sqrt(width) (0.049 for "tiny").
        dropout: Of hidden states and attention weights, in [0, 1); None = 0 from scratch, and
            what a checkpoint configures.
        kv_heads: Key-value heads of a decoder's layer; None = as many as heads.

    Raises:
        UnknownNameError: If no size has that name.
        ValueError: If a number is out of its range.
    """

    weights: str | Path | None = None
    _: KW_ONLY
    size: AnySize = usually("tiny")  # noqa: RUF009 (a field)
    architecture: str = usually("bert")
    initializer_range: float | None = None
    dropout: float | None = None
    kv_heads: int | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        if self.size is not None:
            object.__setattr__(self, "size", size_name(self.size))  # one text for equal sizes
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        check_positive(initializer_range=self.initializer_range)
        check_least(1, kv_heads=self.kv_heads)
        make_absolute(self, "weights", resolve=absolute_if_local)

    @property
    def scratch(self) -> bool:
        """Whether its weights are random."""
        return self.weights is None


@dataclass(frozen=True)
class Training:
    """How a model is trained, when it reports, and on which machine.

    Args:
        steps: Optimiser steps of pre-training. 0 judges a checkpoint under the mask as it is.
        batch: Sequences of a batch.
        micro_batches: Batches of an optimiser step: `batch * micro_batches` sequences.
        lr: Peak learning rate; None = 2e-3 from random weights, 1e-4 from a checkpoint.
        warmup: Share of the steps in which the learning rate rises (its warm-up), in [0, 1].
        schedule: How it falls then: `"linear"`, or `"sqrt"` of what is left (SparseBERT).
        optimiser: `"adamw"`, or `"lamb"` for large batches.
        reports: Number of reports; their steps double up to `steps`.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one.
        precision: `"float32"`, or `"bfloat16"` for autocast; weights of a decoder that is judged
            as it is are bfloat16 too. Default: float32; of decoders bfloat16 on a GPU that
            computes in it.
        compile: Whether pre-training is compiled (`torch.compile`); it pays in long runs. Graphs
            that the process has compiled before are dropped first.
        checkpoint_seconds: Wall time between two checkpoints, in the working folder, from which
            a killed run goes on; on a CPU it ends bit for bit as it would have.

    Raises:
        UnknownNameError: If there is no such optimiser or schedule.
        ValueError: If a number is out of its range.
    """

    steps: int = usually(800)
    _: KW_ONLY
    batch: int = usually(32)
    micro_batches: int = 1
    lr: float | None = None
    warmup: float = 0.06
    schedule: Schedule = "linear"
    optimiser: Optimiser = "adamw"
    reports: int = usually(8)
    device: str = "auto"
    precision: Precision = usually("float32")  # noqa: RUF009 (a field)
    compile: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        own_numbers(self)
        check_least(0, steps=self.steps)
        check_least(1, batch=self.batch, micro_batches=self.micro_batches, reports=self.reports)
        check_positive(lr=self.lr)
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], got {self.warmup}")
        check_name("schedule", self.schedule, get_args(Schedule))
        check_name("optimiser", self.optimiser, get_args(Optimiser))
        if self.precision not in (None, *get_args(Precision)):
            raise ValueError(f"precision is float32 or bfloat16, got {self.precision!r}")

    def peak_rate(self, *, scratch: bool) -> float:
        """The peak learning rate, from random weights or from a checkpoint's."""
        return RATES["lr"][not scratch] if self.lr is None else self.lr


@dataclass(frozen=True)
class Adapt:
    """The weights that are trained for a task, and those under a mask.

    Args:
        how: What is trained under a mask: `"none"`, `"recover"` (a dense model, for some steps)
            or `"train"` (from the checkpoint on), see the evaluators; None =
            `"none"` of a decoder with `weights`, else `"train"`. Flat name: `adapt`.
        steps: Optimiser steps under the mask, for `"recover"` of an encoder. Flat name:
            `recover_steps`.
        tokens: Tokens of the training text that `"recover"` of a decoder learns on, about. Flat
            name: `recover_tokens`.
        lr: Peak learning rate of `"recover"`; None = `finetune_lr`, of a decoder 3e-4. Flat name:
            `recover_lr`.
        learn_from: What `"recover"` of an encoder, and the gates of DAM on frozen weights, learn
            from: the `"labels"` (of decoders the next token), the logits of the `"dense"` model,
            of an encoder `"both"` in equal parts, or of a decoder its last `"hidden"` states.
        gates_learn_from: What the gates of DAM learn from on an encoder's frozen weights; None =
            as `learn_from`, and the labels where that is `"both"`.
        gates_batch: Rows of a batch for these gates; None = `finetune_batch`.
        keep: Whether an encoder's weights after `"recover"` are kept in the folder `recovered` of
            the cache, for each dense model, mask and seed: other rows then score them without
            training again. Flat name: `keep_recovered`.
        finetune_lr: Peak learning rate of fine-tuning; None = 5e-4 where the model began with
            random weights, 5e-5 for a checkpoint.
        finetune_batch: Rows of a fine-tuning batch.
        epochs: Passes over the training rows.
        finetune_seeds: Fine-tuning runs of a task, from the same pre-trained weights. A score is
            their mean; with two or more, `"<score>/std"` is their standard deviation.
        frozen: Lower layers that fine-tuning leaves as they are, the embeddings included (0 =
            the embeddings alone); `"all"` = only the head is trained; None = everything is.

    Raises:
        UnknownNameError: If there is no such way to adapt, or to learn.
        ValueError: If a number is out of its range.
    """

    how: How | None = field(default=None, metadata={"flat": "adapt"})
    _: KW_ONLY
    steps: int = field(default=100, metadata={"flat": "recover_steps"})
    tokens: int = field(default=200_000, metadata={"flat": "recover_tokens"})
    lr: float | None = field(default=None, metadata={"flat": "recover_lr"})
    learn_from: LearnFrom = "labels"
    gates_learn_from: LearnFrom | None = None
    gates_batch: int | None = None
    keep: bool = field(default=False, metadata={"flat": "keep_recovered"})
    finetune_lr: float | None = None
    finetune_batch: int = 32
    epochs: int = 3
    finetune_seeds: int = 1
    frozen: Frozen = None

    def __post_init__(self) -> None:
        own_numbers(self)
        if self.how is not None:
            check_name("adapt", self.how, get_args(How))
        check_name("learn_from", self.learn_from, get_args(LearnFrom))
        check_least(1, recover_steps=self.steps, recover_tokens=self.tokens, epochs=self.epochs)
        check_least(1, finetune_batch=self.finetune_batch, finetune_seeds=self.finetune_seeds)
        check_least(1, gates_batch=self.gates_batch)
        check_positive(recover_lr=self.lr, finetune_lr=self.finetune_lr)
        if not (self.frozen in (None, "all") or (type(self.frozen) is int and self.frozen >= 0)):
            raise ValueError(f"frozen is a number of layers, 'all' or None, got {self.frozen!r}")

    def finetune_rate(self, *, scratch: bool) -> float:
        """The peak learning rate of fine-tuning, where the model began with random weights or
        with a checkpoint's."""
        rate = self.finetune_lr
        return RATES["finetune_lr"][not scratch] if rate is None else rate


def check_least(least: int, **numbers: int | None) -> None:
    """Refuses numbers that are too small; None is none."""
    for name, value in numbers.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_positive(**numbers: float | None) -> None:
    """Refuses numbers that are not positive; None is none."""
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def refuse_beside_recall(**settings: object) -> None:
    """Refuses settings of a text beside planted recall, where they are given."""
    for name, value in settings.items():
        if value:
            raise ValueError(
                f"planted recall has token ids of its own, so {name}= belongs to text; leave "
                "it out (weights=, or architecture= and size=, say what is judged)"
            )


# -- flat names ----------------------------------------------------------------------------------
PARTS: dict[str, Any] = {"text": Text, "model": Model, "training": Training, "adaptation": Adapt}
PART_NAMES = {part: kind.__name__.lower() for part, kind in PARTS.items()}  # before a dot


class Place(NamedTuple):
    """Where a setting stands: the evaluator's field that holds the part, and the part's field."""

    part: str
    field: Field[Any]

    def __str__(self) -> str:
        return f"{PARTS[self.part].__name__}.{self.field.name}"

    @property
    def usual(self) -> Any:
        """The default, unless an evaluator has another one."""
        return self.field.metadata.get("usually", self.field.default)


FLAT = {
    str(each.metadata.get("flat", each.name)): Place(name, each)
    for name, part in PARTS.items()
    for each in fields(part)
}


def read_places(kind: Any) -> dict[str, Place]:
    """Flat name -> place of the settings of parts that evaluators of a class read.

    Args:
        kind: The class. Its `unread` names settings of parts that it does nothing with, by their
            flat names, divided by blanks; a part's own name stands for all of its settings.
    """
    if not hasattr(kind, "unread"):  # it is not made of parts
        return {}
    unread = {*kind.unread.split()}
    return {name: place for name, place in FLAT.items() if not unread & {name, place.part}}


def own_fields(kind: Any) -> dict[str, Field[Any]]:
    """Name -> field of the settings that an evaluator holds itself."""
    return {each.name: each for each in fields(kind) if each.init and each.name not in PARTS}


def setting_names(kind: Any) -> list[str]:
    """Names of the settings of an evaluator: its own fields, and those of parts by flat names."""
    return [*own_fields(kind), *read_places(kind)]


def usual_settings(kind: Any) -> dict[str, Any]:
    """Name -> default of the settings of an evaluator that have one."""
    by_name = {name: each.default for name, each in own_fields(kind).items()}
    usual = {name: value for name, value in by_name.items() if value is not MISSING}
    places = read_places(kind).items()
    return usual | {name: kind.defaults.get(name, place.usual) for name, place in places}


def flat_settings(evaluator: Any) -> dict[str, Any]:
    """Name -> value of the fields that a dataclass takes; in place of parts their settings that it
    reads, by flat names."""
    places = read_places(type(evaluator))
    names = [each.name for each in fields(evaluator) if each.init and each.repr]
    return {
        **{n: getattr(getattr(evaluator, at.part), at.field.name) for n, at in places.items()},
        **{name: getattr(evaluator, name) for name in names if not places or name not in PARTS},
    }


def assemble(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an evaluator, each part whole.

    Args:
        kind: Its class: a dataclass with the fields `PARTS`, with `unread` (see `read_places`) and
            `defaults`: flat name -> default in place of a part's own.
        settings: Fields of its own; parts, or in place of a part the value of its first field;
            and fields of parts by their flat names, which change the part beside them.

    Raises:
        UnknownNameError: If the evaluator has no such setting; names the nearest and its part.
        TypeError: If a field without a default is missing.
        ValueError: If a part says what the evaluator does not read.
    """
    own_settings, places, usual = own_fields(kind), read_places(kind), usual_settings(kind)
    values: dict[str, Any] = {}
    changes: dict[str, dict[str, Any]] = {name: {} for name in PARTS}
    for name, value in settings.items():
        if isinstance(value, Adapt):
            values["adaptation"] = value
        elif name in own_settings or name in PARTS:
            values[name] = value
        elif name in places:
            changes[places[name].part][places[name].field.name] = value
        else:
            raise unknown_setting(kind, name)
    for name, part in PARTS.items():
        part_value = values.get(name, part())
        whole = isinstance(part_value, part)
        made = replace(part_value, **changes[name]) if whole else part(part_value, **changes[name])
        values[name] = complete(kind, name, made, usual)
    for name, each in own_settings.items():
        if name not in values and each.default_factory is not MISSING:
            values[name] = each.default_factory()
        elif values.setdefault(name, each.default) is MISSING:
            raise TypeError(f"{kind.__name__} needs {name}=, which has no default")
    return values


def complete(kind: Any, name: str, part: Any, usual: Mapping[str, Any]) -> Any:
    """A part with the defaults of an evaluator (`usual_settings`), where it says nothing else.

    Raises:
        ValueError: If it says what the evaluator does not read.
    """
    filled: dict[str, Any] = {}
    for flat, place in FLAT.items():
        if place.part != name:
            continue
        value = getattr(part, place.field.name)
        if flat in usual and value is None:
            filled[place.field.name] = usual[flat]
        if flat not in usual and value != place.field.default:
            raise ValueError(f"{kind.__name__} does not read {place}, got {value!r}; leave it out")
    return replace(part, **filled)


def unknown_setting(kind: Any, name: str) -> UnknownNameError:
    """An error that names the nearest settings of an evaluator and their parts, and all others."""
    by_part: dict[str, list[str]] = {}
    for each in setting_names(kind):
        part = f"of {PARTS[FLAT[each].part].__name__} " if each in FLAT else ""
        by_part.setdefault(part, []).append(each)
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(last, setting_names(kind), n=2)
    places = [f"{each!r} ({FLAT[each]})" if each in FLAT else repr(each) for each in near]
    hint = f"; did you mean {' or '.join(places)}?" if near else "."
    listing = "; ".join(part + ", ".join(names) for part, names in by_part.items())
    return UnknownNameError(f"{kind.__name__} has no setting {name!r}{hint} Known: {listing}")
