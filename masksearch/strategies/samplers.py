"""Optuna samplers behind ask and tell.

The strategy keeps a study of its own in memory, filled from the records that it is told, and
gives every draw a sampler seeded by (seed, draw number). So its state is a function of its
arguments and of the told records, and a search resumed from a database goes on as if it had
never stopped.
"""

from __future__ import annotations

import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial

from masksearch.contracts import Evaluate, Job, Objective, Proposal, Record, Refused, mixed_seed
from masksearch.errors import MaskSearchError
from masksearch.masks.core import Mask
from masksearch.strategies.grouped_tpe import GroupedTpe
from masksearch.strategies.replay import Filler, ToldStudy, Verdicts
from masksearch.study.constraints import Constraint
from masksearch.study.store import quiet

Space = Callable[[BaseTrial], Mask]
SamplerFactory = Callable[[int, int], BaseSampler]  # seed of the draw, seed of the search
STARTUP = 6  # random draws before TPE models anything; budgets here are tens of trials
POPULATION = 20  # of the genetic algorithms: a budget of 200 is then ten generations


def random_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """Uniform draws: the control arm of every comparison."""
    return optuna.samplers.RandomSampler(seed=draw_seed)


def tpe_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """Multivariate TPE in groups that also counts running trials.

    Optuna switches multivariate off for several objectives by default; on mixed conditional
    spaces the grouped form is the better one.
    """
    return GroupedTpe(seed=draw_seed, startup=STARTUP)


def nsga2_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """NSGA-II: for flat spaces, a few objectives and hundreds of trials."""
    return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=draw_seed)


def nsga3_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """NSGA-III: for flat spaces and many objectives."""
    return optuna.samplers.NSGAIIISampler(population_size=POPULATION, seed=draw_seed)


def gp_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """Gaussian processes: few trials, up to about 20 numbers, a second or so a draw.

    Parameters that not every trial has are drawn at random.
    """
    return optuna.samplers.GPSampler(seed=draw_seed, warn_independent_sampling=False)


def qmc_sampler(draw_seed: int, search_seed: int) -> BaseSampler:
    """A scrambled Sobol sequence: random search that fills a flat space evenly.

    The search's seed chooses the sequence; parameters that the first finished trial did not
    have are drawn at random, with the draw's seed.
    """
    return optuna.samplers.QMCSampler(
        scramble=True,
        seed=search_seed,
        independent_sampler=optuna.samplers.RandomSampler(seed=draw_seed),
        warn_independent_sampling=False,
    )


SAMPLERS: dict[str, SamplerFactory] = {
    "random": random_sampler,
    "tpe": tpe_sampler,
    "nsga2": nsga2_sampler,
    "nsga3": nsga3_sampler,
    "gp": gp_sampler,
    "qmc": qmc_sampler,
}


class OptunaStrategy:
    """Draws masks from a space with an Optuna sampler.

    Args:
        space: A pure function of an Optuna trial that returns a mask.
        objectives: In the study's order.
        sampler: Builds a sampler from the seed of the draw and the seed of the search (one of
            `SAMPLERS`), or one sampler that is used as it is (then only its own seeding makes
            it reproducible).
        seed: Seed of all draws.
        name: Origin of the proposals.
        constraints: What the search's masks must keep; the sampler learns which do, from early
            stopped masks too (`Verdicts` says how).
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[Objective],
        *,
        sampler: SamplerFactory | BaseSampler,
        seed: int,
        name: str,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.sampler, self.name = sampler, name
        stream = zlib.crc32(name.encode())  # strategies of one seed draw apart
        self.seeds = (seed, stream)
        first = self.sampler_of(0)
        genetic = optuna.samplers.NSGAIISampler, optuna.samplers.NSGAIIISampler
        self.genetic = isinstance(first, genetic)
        filler: Filler = "worst" if self.genetic else "none"
        if isinstance(first, optuna.samplers.GPSampler):
            filler = "median"
        self.verdicts = Verdicts(objectives, constraints, filler)
        self.memory = ToldStudy(objectives, first)
        self.records: dict[int, Record] = {}  # draw -> the latest that is known of it
        self.held: set[int] = set()  # draws that the study in memory holds
        self.changed: set[int] = set()  # told since the last ask
        self.next = 0  # the next draw
        self.branches: set[frozenset[str]] = set()  # sets of parameters that were drawn
        self.warned = False

    @property
    def study(self) -> optuna.Study:
        """The study in memory; trial number = draw number. Told records reach it at `ask`."""
        return self.memory.study

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The next draw; a space that fails becomes a `Refused` job with its traceback.

        "done" where the sampler says that its space is exhausted (grid, brute force).
        """
        draw = self.next
        self.catch_up()
        if self.memory.study.over:
            return "done"
        before = self.memory.attributes()
        with quiet():  # a GP says so where it falls back to its default kernel
            trial = self.memory.draw(self.sampler_of(draw))
            job = drawn_job(self.space, trial)
        memo = self.memory.memo(trial, before)
        self.next += 1
        self.held.add(draw)
        proposal = Proposal(draw, job, dict(trial.params), self.name, memo=memo)
        if self.genetic:
            self.warn_of_branches(proposal)
        self.records[draw] = Record(draw, "running", job, params=proposal.params, memo=memo)
        return proposal

    def tell(self, record: Record) -> None:
        """Takes a result, or (status "running") learns that a draw is out."""
        if record.number in self.held:
            if record.status == "running":
                return
            record = replace(record, memo=self.records[record.number].memo)
        self.records[record.number] = record
        self.changed.add(record.number)
        self.next = max(self.next, record.number + 1)

    def sampler_of(self, draw: int) -> BaseSampler:
        """The sampler of a draw, with seeds of its own."""
        if isinstance(self.sampler, BaseSampler):
            return self.sampler
        with quiet():  # group and multivariate are experimental
            return self.sampler(
                mixed_seed(*self.seeds, draw) % 2**32, mixed_seed(*self.seeds) % 2**32
            )

    def catch_up(self) -> None:
        """Brings the study in memory to what was told, in the order of the draws."""
        if self.verdicts.filler == "median" and self.verdicts.constraints:
            # fillers move with every score: such a study is made anew (a GP is slower by far)
            self.memory = ToldStudy(self.objectives, self.memory.study.sampler)
            self.held.clear()
            self.changed = set(self.records)
        for draw in sorted(self.changed):
            record = self.records[draw]
            if draw not in self.held:
                self.memory.place(record)
                self.held.add(draw)
                if self.genetic:
                    self.warn_of_branches(record)
            if record.status != "running":
                self.memory.finish(draw, self.verdicts.outcome(record, self.records))
        self.changed.clear()

    def warn_of_branches(self, drawn: Proposal | Record) -> None:
        """Warns once if draws differ in their parameters, because crossover sees only those
        that all share: the others are redrawn at random."""
        if isinstance(drawn.job, Refused):
            return
        self.branches.add(frozenset(drawn.params))
        if len(self.branches) == 2 and not self.warned:
            self.warned = True
            warnings.warn(
                f"strategy {self.name!r} on a conditional space is little more than random "
                "search: it crosses only the parameters that every mask has; use 'evolution' "
                "or 'tpe'",
                stacklevel=3,
            )


def drawn_job(space: Space, trial: BaseTrial) -> Job:
    """What a space makes of a trial; a failure becomes a job that is refused, with its reason."""
    try:
        mask = space(trial)
    except MaskSearchError as error:
        return Refused(f"{type(error).__name__}: {error}")
    except Exception:  # the user's code; the reason becomes a failed record
        return Refused(f"the space raised\n{traceback.format_exc(limit=-4)}")
    if isinstance(mask, Mask):
        return Evaluate(mask)
    return Refused(
        f"the space returned {type(mask).__name__}, not a Mask (content masks have no cells to "
        "search); end it with for example `return masks.window(reach)`"
    )
