"""The base of evaluators that judge a mask on a model: four parts, and which rows are scored."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import torch

from masksearch.contracts import Evaluator, Half
from masksearch.errors import check_name
from masksearch.files import own_numbers
from masksearch.training.loop import TrainConfig, find_device, find_precision
from masksearch.training.parts import (
    PARTS,
    Adapt,
    Model,
    Text,
    Training,
    assemble,
    flat_settings,
    read_places,
    setting_names,
    usual_settings,
)

NO_CORPUS = "there is no corpus; give a text file or a folder"


def positional_names(kind: Any) -> list[str]:
    """Settings of an evaluator that are taken by position too: its text, then its own fields."""
    names = [each.name for each in fields(kind) if each.init and not each.kw_only]
    return ["text", *names] if "corpus" in read_places(kind) else names


class SettingsSignature:
    """An evaluator's signature in `help`, notebooks and `inspect.signature`: its settings by
    their flat names, with their defaults, and its parts."""

    def __get__(self, evaluator: object, kind: type) -> inspect.Signature | None:
        if evaluator is not None:  # whose call has another one
            return None
        usual, first = usual_settings(kind), positional_names(kind)
        names = dict.fromkeys([*first, *setting_names(kind), *PARTS, "adapt"])
        either, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        kinds = {name: either if name in first else named for name in names}
        return inspect.Signature(
            [inspect.Parameter(name, kinds[name], default=usual.get(name)) for name in names]
        )


@dataclass(frozen=True, init=False, repr=False)
class AssembledEvaluator(Evaluator):
    """Judges a mask on a model that parts describe.

    Every field of a part that the evaluator reads is a setting of the evaluator too, by its flat
    name, in the constructor (`steps=3` changes `training`), in `dataclasses.replace`, and as an
    attribute: `evaluator.steps` is `evaluator.training.steps`.

    Args:
        text: What the model reads; in its place the corpus alone.
        model: What masks are put on.
        training: How the model is trained, when it reports, on which machine.
        adaptation: What is trained for a task, and under a mask; given as `adapt=`, too.
        half: Which held-out rows are scored: `"search"`, or those that no search has seen
            (`"final"`). `"all"` = both, as versions without halves had it; `"test"` = the data's
            test rows. Nothing that is trained depends on it.
    """

    _: KW_ONLY
    text: Text = field(default_factory=Text)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    adaptation: Adapt = field(default_factory=Adapt)
    half: Half = "search"

    unread: ClassVar[str] = ""  # flat names of settings of parts that are not read
    defaults: ClassVar[Mapping[str, Any]] = {}  # flat name -> default in place of the part's
    held: ClassVar[Mapping[str, Any]] = {}  # in a packed evaluator the data that it holds
    __signature__ = SettingsSignature()

    def __init__(self, *values: Any, **settings: Any) -> None:
        names = positional_names(type(self))
        if len(values) > len(names):
            raise TypeError(
                f"{type(self).__name__} takes {', '.join(names)} by position, got {len(values)} "
                "values; name the others"
            )
        positional = dict(zip(names, values, strict=False))
        if twice := sorted({*positional} & {*settings}):
            raise TypeError(f"{type(self).__name__} got {twice[0]} twice")
        for name, value in assemble(type(self), positional | settings).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if callable(vars(cls).get("model")):
            raise TypeError(
                f"{cls.__name__}.model is a part; call the method that makes a model build_model"
            )
        for name in ("__init__", "__repr__"):  # which @dataclass keeps where a class has its own
            if name not in vars(cls):
                setattr(cls, name, getattr(cls, name))

    def __repr__(self) -> str:
        usual = usual_settings(type(self))
        settings = flat_settings(self).items()
        shown = [f"{n}={value!r}" for n, value in settings if n not in usual or value != usual[n]]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __post_init__(self) -> None:
        own_numbers(self)
        check_name("half", self.half, get_args(Half))
        if "precision" in read_places(type(self)):  # once: a worker's GPU is not asked again
            precision = find_precision(self.training.precision, self.training.device)
            object.__setattr__(self, "training", replace(self.training, precision=precision))

    if not TYPE_CHECKING:  # typed code reads `evaluator.training.steps`

        def __getattr__(self, name: str) -> Any:
            """A part's field by its flat name."""
            places = read_places(type(self))
            if name not in places:  # nor an attribute: Python's error, or that of a property
                return object.__getattribute__(self, name)
            return getattr(getattr(self, places[name].part), places[name].field.name)

    def on(self, half: Half) -> Self:
        """The same evaluator on other rows: another protocol, and the same training.

        Args:
            half: `"search"`, `"final"`, `"test"` or `"all"`.

        Raises:
            DataError: If the data has no such rows.
        """
        if half == self.half:
            return self
        made = replace(self, half=half)
        made.protocol  # noqa: B018 (reads the rows, and so refuses an empty half)
        return made

    def holding(self, **data: Any) -> Self:
        """The same evaluator with data in memory (`held`); a `dataclasses.replace` of it holds
        none, since other settings may read other data."""
        made = copy.copy(self)
        object.__setattr__(made, "held", data)
        return made

    @property
    def train_config(self) -> TrainConfig:
        """Settings of a training of all weights."""
        training = self.training
        return TrainConfig(
            steps=training.steps,
            lr=training.peak_rate(scratch=self.model.scratch),
            warmup=training.warmup,
            micro_batches=training.micro_batches,
            optimiser=training.optimiser,
            schedule=training.schedule,
        )

    @property
    def weight_lr(self) -> float | None:
        """Peak learning rate of a checkpoint's weights beside gates; None from random weights."""
        return None if self.model.scratch else self.training.peak_rate(scratch=False)

    @property
    def place(self) -> torch.device:
        """The device that trains."""
        return find_device(self.training.device)
