"""What a search space is asked for, and what is made of its answer.

A space is the user's own function: its mistakes are told with the file and the line, and a
parameter has to keep its kind and its range from draw to draw.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    json_to_distribution,
)
from optuna.trial import BaseTrial, Trial
from torch import Tensor

from masksearch.contracts import Evaluate, Job, Record, Refused, Shape
from masksearch.errors import MaskSearchError, SpaceError
from masksearch.masks.core import Mask
from masksearch.study.store import quiet
from masksearch.user_code import describe_error

Space = Callable[[BaseTrial], Mask]
BUGS = (AttributeError, ImportError, NameError, TypeError)  # whatever is drawn


def try_space(space: Space, shape: Shape) -> None:
    """Draws from a space once, so that a mistake is found before anything is trained.

    Raises:
        SpaceError: If it is broken Python, or returns no mask; gives the file and the line.
        LayerCountError, HeadCountError: If the mask is one for another model.
    """
    with quiet():
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    try:
        mask = space(trial)
    except BUGS as error:
        raise SpaceError(f"the space raised {describe_error(error)}") from error
    except Exception:  # of this draw, maybe: the record of such a trial says what it was
        return
    if not isinstance(mask, Mask):
        raise SpaceError(no_mask(mask))
    mask.counts(shape.layers, shape.heads)


def draw_job(space: Space, trial: Trial, parameters: Parameters, draw: int) -> Job:
    """What a space makes of a trial; a failure becomes a job that is refused, with its reason.

    Args:
        space: The user's function.
        trial: Optuna's.
        parameters: Of the draws so far.
        draw: Number of this one.

    Raises:
        SpaceError: If a parameter's kind or range is not what it was before.
    """
    checked: Any = CheckedTrial(trial, parameters, draw)
    try:
        mask = space(checked)
    except SpaceError:
        raise
    except MaskSearchError as error:
        return Refused(f"{type(error).__name__}: {error}")
    except Exception as error:  # the user's code; the reason becomes a failed record
        trace = traceback.format_exc(limit=-4)
        return Refused(f"{trace}\nthe space raised {describe_error(error)}")
    return Evaluate(mask) if isinstance(mask, Mask) else Refused(no_mask(mask))


def no_mask(answer: object) -> str:
    """Why a space's answer is refused."""
    way = "`return masks.window(reach)`"
    if isinstance(answer, Tensor):
        way = "`return masks.table(tensor)`, of a bool tensor [n, n] or [layers, heads, n, n]"
    return f"the space returned {type(answer).__name__}, not a Mask; end it with for example {way}"


class Parameters:
    """The kind and range that each parameter of a space had when it was first drawn.

    A sampler learns from earlier draws only what is said of the same choices.
    """

    def __init__(self) -> None:
        self.first: dict[str, tuple[int, BaseDistribution]] = {}

    def learn(self, record: Record) -> None:
        """Takes a draw as it was told."""
        kinds = json.loads(record.memo.get("distributions", "{}"))
        for name, text in kinds.items():
            self.first.setdefault(name, (record.number, json_to_distribution(text)))

    def check(self, name: str, kind: BaseDistribution, draw: int) -> None:
        """Takes a parameter that is being drawn.

        Raises:
            SpaceError: If it was of another kind or range before.
        """
        first, known = self.first.setdefault(name, (draw, kind))
        if known != kind:
            raise SpaceError(
                f"parameter {name!r} of the space has changed: draw {first} asked for "
                f"{describe_kind(known)}, draw {draw} for {describe_kind(kind)}; a parameter has "
                "the same choices whenever it is asked for: give each case a name of its own, "
                "or draw from the widest range always"
            )


def describe_kind(kind: BaseDistribution) -> str:
    """A parameter's kind and range as a space writes them.

    >>> describe_kind(optuna.distributions.IntDistribution(1, 8, log=True))
    'suggest_int(1, 8, log=True)'
    """
    if isinstance(kind, CategoricalDistribution):
        return f"suggest_categorical({list(kind.choices)})"
    assert isinstance(kind, IntDistribution | FloatDistribution)
    step = "" if kind.step in (None, 1) else f", step={kind.step}"
    name = "int" if isinstance(kind, IntDistribution) else "float"
    return f"suggest_{name}({kind.low}, {kind.high}{step}{', log=True' if kind.log else ''})"


class CheckedTrial:
    """A trial whose parameters are checked before it draws them; otherwise the trial itself.

    Args:
        trial: Optuna's.
        parameters: Of the draws so far.
        draw: Number of this one.
    """

    def __init__(self, trial: Trial, parameters: Parameters, draw: int) -> None:
        self.trial, self.parameters, self.draw = trial, parameters, draw

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        self.parameters.check(name, CategoricalDistribution(choices), self.draw)
        return self.trial.suggest_categorical(name, choices)

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
    ) -> float:
        """A number in [low, high]."""
        self.parameters.check(name, FloatDistribution(low, high, log=log, step=step), self.draw)
        return self.trial.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        """A whole number in low .. high."""
        self.parameters.check(name, IntDistribution(low, high, log=log, step=step), self.draw)
        return self.trial.suggest_int(name, low, high, step=step, log=log)


BaseTrial.register(CheckedTrial)
