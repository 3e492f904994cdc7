"""Pre-trains one model under each of several masks, all of them as one program.

    runs = pretrained_together(evaluator, [masks.full(), masks.star()], seeds=[0, 0])
    for reports in zip(*runs):
        print([report.values["loss"] for report in reports])

Every run is an iterator of reports as a call of the evaluator gives it, with the same figures to
float tolerance; closing one takes its model out, and the others go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch

from masksearch.contracts import Batch, Report, mixed_seed
from masksearch.errors import MaskSearchError, SearchError
from masksearch.evaluators.mlm import DATA, MlmEvaluator, report_steps
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.trained_together import TrainedTogether
from masksearch.training.loop import FOLLOWERS, Step

FOLLOWED: dict[str, tuple[object, ...]] = {  # settings, and their values that are followed
    "pretraining": ("mlm",),
    "architecture": ("bert",),
    "weights": (None,),
    "dropout": (None, 0.0),
    "micro_batches": (1,),
    "optimiser": ("adamw",),
    "schedule": ("linear",),
}


def pretrained_together(
    evaluator: MlmEvaluator, masks: Sequence[Mask], *, seeds: Sequence[int]
) -> list[Iterator[Report]]:
    """Runs of an evaluator under several masks that share one program.

    The runs are advanced in any order; whichever needs a report next trains them all up to it.
    Nothing is read or trained before the first one is advanced. There are no checkpoints.

    Args:
        evaluator: Settings, data and models; must be an `MlmEvaluator` itself, as a subclass
            does more than pre-training.
        masks: One for each run.
        seeds: Seed of each run. Where all are the same, so are the batches, drawn once for all.

    Returns:
        For each mask its reports. A mask that does not fit, or a loss that is not finite, raises
        its error in that run alone.

    Raises:
        SearchError: If the evaluator is of another class, or has settings that are not followed
            here (checkpoints to start from, dropout, sentence pairs, LAMB, ..).
        ValueError: If there are not as many seeds as masks.
    """
    check_settings(evaluator)
    if len(masks) != len(seeds):
        raise ValueError(f"{len(masks)} masks need as many seeds, got {len(seeds)}")
    group = Group(evaluator, masks, seeds)
    return [group.run(index) for index in range(len(masks))]


def check_settings(evaluator: MlmEvaluator) -> None:
    """Refuses an evaluator that does what is not done together."""
    if type(evaluator) is not MlmEvaluator:
        raise SearchError(
            f"{type(evaluator).__name__} does more than pre-training, which is all that is done "
            "together; use MlmEvaluator, or judge one mask after the other with Local()"
        )
    for name, followed in FOLLOWED.items():
        value = getattr(evaluator, name)
        if value not in followed:
            raise SearchError(
                f"masks train together with {name} = {followed[0]!r}, got {value!r}; "
                "judge one mask after the other with Local()"
            )
    if evaluator.steps < 1:
        raise SearchError(f"masks train together for at least 1 step, got {evaluator.steps}")


class Group:
    """The runs that share one program. Arguments as in `pretrained_together`."""

    def __init__(
        self, evaluator: MlmEvaluator, masks: Sequence[Mask], seeds: Sequence[int]
    ) -> None:
        self.evaluator, self.masks, self.seeds = evaluator, masks, seeds
        self.news: list[deque[Report | MaskSearchError]] = [deque() for _ in masks]
        self.closed: set[int] = set()
        self.rounds: Iterator[None] | None = None
        self.intact = True  # False after an error that ended all runs
        self.trained: TrainedTogether | None = None
        self.members: list[int] = []  # index of each model of `trained`

    def run(self, index: int) -> Iterator[Report]:
        """One run's reports."""
        try:
            while self.news[index] or self.advance():
                while self.news[index]:
                    found = self.news[index].popleft()
                    if isinstance(found, MaskSearchError):
                        raise found
                    yield found
        finally:
            self.closed.add(index)
            if self.trained is not None and index in self.members:
                self.trained.leave([self.members.index(index)])

    def advance(self) -> bool:
        """Trains until there is news for some run; False = everything has ended."""
        if not self.intact:
            raise SearchError(
                "the program that trained this mask together with others was ended by an error, "
                "which stands in the record of one of the others"
            )
        self.intact = False
        self.rounds = self.rounds or self.trained_rounds()
        found = next(self.rounds, self)
        self.intact = True
        return found is None

    def trained_rounds(self) -> Iterator[None]:
        """The training; yields whenever there is news."""
        evaluator = self.evaluator
        tables = []
        for index, mask in enumerate(self.masks):
            if index in self.closed:
                continue
            try:
                tables.append(lower(mask, evaluator.shape))
                self.members.append(index)
            except MaskSearchError as problem:  # this mask's alone
                self.news[index].append(problem)
        if self.members:
            yield from self.pretraining(torch.stack(tables))
        else:
            yield

    def pretraining(self, tables: torch.Tensor) -> Iterator[None]:
        """Trains the members' models under their tables."""
        evaluator = self.evaluator
        task = evaluator.task()
        held_out = task.held_out()
        models = [evaluator.model(self.seeds[index]) for index in self.members]
        self.trained = trained = TrainedTogether(
            models,
            tables,
            evaluator.train_config,
            precision=evaluator.precision,
            compiled=evaluator.compile,
        )
        sources: dict[int, Iterator[Batch]] = {
            seed: task.batches(mixed_seed(seed, DATA))
            for seed in sorted({self.seeds[index] for index in self.members})
        }
        due = report_steps(evaluator.steps, evaluator.reports)
        while trained.running and trained.number < evaluator.steps:
            drawn = {seed: next(source) for seed, source in sources.items()}
            alive = [self.seeds[self.members[row]] for row in trained.running]
            shared = len(set(alive)) == 1
            found = trained.step([drawn[alive[0]]] if shared else [drawn[seed] for seed in alive])
            errors = {row: end for row, end in found.items() if not isinstance(end, Step)}
            for step in [end for end in found.values() if isinstance(end, Step)][:1]:
                for follower in FOLLOWERS.get():  # progress: one step of the whole program
                    follower(step, evaluator.train_config)
            for row, problem in errors.items():
                self.news[self.members[row]].append(problem)
            if trained.number in due and trained.running:
                for row, loss in trained.held_out(held_out).items():
                    self.news[self.members[row]].append(Report(trained.number, {"loss": loss}))
            if errors or trained.number in due:
                yield
