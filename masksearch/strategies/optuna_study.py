"""Optuna samplers behind ask and tell.

The strategy keeps a study of its own in memory, filled from the records that it is told, and
gives every draw a sampler seeded by (seed, draw number). So its state is a function of its
arguments and of the told records, and a search resumed from a database goes on as if it had
never stopped.
"""

from __future__ import annotations

import json
import traceback
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial, TrialState

from masksearch.contracts import Evaluate, Job, Objective, Proposal, Record, Refused, mixed_seed
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.results.study_store import STATES, directions, quiet

Space = Callable[[BaseTrial], Mask]
STARTUP = 6  # random draws before TPE models anything; budgets here are tens of trials


def random_sampler(seed: int) -> BaseSampler:
    """Uniform draws: the control arm of every comparison."""
    return optuna.samplers.RandomSampler(seed=seed)


def tpe_sampler(seed: int) -> BaseSampler:
    """Multivariate, grouped TPE that also counts running trials.

    Optuna switches multivariate off for several objectives by default; on mixed conditional
    spaces the grouped form is the better one.
    """
    with quiet():
        return optuna.samplers.TPESampler(
            multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP, seed=seed
        )


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": random_sampler,
    "tpe": tpe_sampler,
}


class OptunaStrategy:
    """Draws masks from a space with an Optuna sampler.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        objectives: In the study's order.
        sampler: Builds a sampler from a seed, or one sampler that is used as it is (then only
            its own seeding makes it reproducible).
        seed: Seed of all draws.
        name: Origin of the proposals.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        *,
        sampler: Callable[[int], BaseSampler] | BaseSampler,
        seed: int,
        name: str,
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.sampler, self.seed, self.name = sampler, seed, name
        with quiet():
            self.study = optuna.create_study(directions=directions(objectives))
        self.numbers: dict[int, int] = {}  # draw -> number in the study in memory

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next draw; a space that fails becomes a `Refused` job with its traceback."""
        draw = max(self.numbers, default=-1) + 1
        if isinstance(self.sampler, BaseSampler):
            self.study.sampler = self.sampler
        else:
            stream = zlib.crc32(self.name.encode())  # strategies of one seed draw apart
            self.study.sampler = self.sampler(mixed_seed(self.seed, stream, draw) % 2**32)
        trial = self.study.ask()
        self.numbers[draw] = trial.number
        job: Job
        try:
            mask = self.space(trial)
            if isinstance(mask, Mask):
                job = Evaluate(mask)
            else:
                job = Refused(
                    f"the space returned {type(mask).__name__}, not a Mask; "
                    "end it with for example `return masks.window(reach)`"
                )
        except MaskSearchError as error:
            job = Refused(f"{type(error).__name__}: {error}")
        except Exception:  # the user's code; the reason becomes a failed record
            job = Refused(f"the space raised\n{traceback.format_exc(limit=-4)}")
        kinds = {name: distribution_to_json(kind) for name, kind in trial.distributions.items()}
        memo = {"distributions": json.dumps(kinds)}
        return Proposal(draw, job, dict(trial.params), self.name, memo=memo)

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that a draw is out."""
        state = STATES[record.status]
        complete = state is TrialState.COMPLETE
        values = [record.value(o.name) for o in self.objectives] if complete else None
        with quiet():
            if record.number in self.numbers:
                if state is not TrialState.RUNNING:
                    self.study.tell(self.numbers[record.number], values=values, state=state)
                return
            self.numbers[record.number] = len(self.study.get_trials(deepcopy=False))
            kinds = json.loads(record.memo.get("distributions", "{}"))
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    values=values,
                    params=dict(record.params),
                    distributions={k: json_to_distribution(text) for k, text in kinds.items()},
                )
            )
