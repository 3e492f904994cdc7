"""A super-net judges hundreds of masks; the best of every density band are trained for real.

    masksearch search masksearch.spaces:distance_bits --trials 12 --run runs/s
        --strategy experiments/08_shared_weights/shared_strategy.py:SharedStrategy
        --set strategy.sampler=tpe --set strategy.steps=200

The first question for a mask trains the super-net, in the search's own process, and lets a sampler
propose masks to it. From then on the strategy proposes masks out of that ranking. The weights stay
in the run folder: a search that goes on judges with them again, which takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.trial import BaseTrial

import masksearch as ms
from masksearch.analysis.pareto import nondominated_ranks
from masksearch.contracts import Evaluate, Evaluator, Proposal, Record, Refused, Strategy
from masksearch.errors import check_name
from masksearch.masks.measure import MEASURES, fingerprint, measures
from masksearch.strategies.samplers import SAMPLERS, OptunaStrategy
from masksearch.study.records import Constraint
from masksearch.user_code import load_function

RIVALS = Path(__file__).parents[1] / "rivals"
EvolutionStrategy = load_function(f"{RIVALS / 'evolution.py'}:EvolutionStrategy")
SharedWeights = load_function(f"{Path(__file__).with_name('shared_weights.py')}:SharedWeights")

AT_ONCE = 8  # masks that are proposed before the super-net judges them
Space = Callable[[BaseTrial], ms.Mask]
PROPOSERS = ("tpe", "random", "evolution")


@dataclass(frozen=True)
class Candidate:
    """One mask that the super-net has judged.

    Args:
        mask: As the space gave it.
        params: What the sampler suggested.
        density: Of the lowered table, in (0, 1].
        loss: Held out, under the shared weights.
        band: Density band, from 0, the sparsest.
        front: How often the Pareto front of loss and density must be taken away before this mask
            is on it; 0 = on the front.
    """

    mask: ms.Mask
    params: Mapping[str, Any]
    density: float
    loss: float
    band: int = 0
    front: int = 0


class SharedStrategy:
    """Trains a super-net, has masks proposed to it, and proposes those that it ranks best.

    The masks are taken in turn from bands of density, from the densest to the sparsest and again:
    in each band first those nearest to the super-net's Pareto front, among these the best loss.
    Any number of trials is so spread over the front.

    Args:
        space: Draws the masks.
        evaluator: With `differentiable(seed)`.
        run: The run folder; the super-net is kept below it, with checkpoints.
        seed: Of the super-net and of the proposals.
        constraints: Of the search: masks that violate one that is known without training are not
            judged, and the sampler learns so.
        budgets: What the masks that are proposed to the super-net may cost, in turn.
        sampler: Who proposes masks to the super-net: `"tpe"`, `"random"` or `"evolution"`.
        candidates: Masks that the super-net judges.
        bands: Of density, each with as many ranked masks.
        **net: Settings of `SharedWeights`: `steps`, `masks_per_step`, `sandwich`, `lr`, ...

    Raises:
        UnknownNameError: If there is no such sampler.
        ValueError: If `candidates` or `bands` is below 1, or a setting is out of its range.
    """

    def __init__(
        self,
        space: Space,
        evaluator: Evaluator,
        run: Path,
        *,
        seed: int = 0,
        constraints: Sequence[Constraint] = (),
        budgets: Sequence[float] = (),
        sampler: str = "tpe",
        candidates: int = 300,
        bands: int = 4,
        **net: Any,
    ) -> None:
        check_name("sampler", sampler, PROPOSERS)
        for name, value in (("candidates", candidates), ("bands", bands)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if space is None:
            raise ms.errors.SearchError("a super-net needs a space, which draws the masks")
        self.shared = SharedWeights(evaluator, space, seed=seed, folder=run / "supernet", **net)
        self.candidates, self.bands, self.origin = candidates, bands, f"shared+{sampler}"
        self.constraints = [limit for limit in constraints if limit.name in MEASURES]
        limits: dict[str, Any] = {"constraints": self.constraints, "budgets": budgets}
        self.proposer: Strategy
        if sampler == "evolution":
            self.proposer = EvolutionStrategy(space, self.shared.objectives, seed=seed, **limits)
        else:
            self.proposer = OptunaStrategy(
                space,
                self.shared.objectives,
                sampler=SAMPLERS[sampler],
                seed=seed,
                name=self.origin,
                **limits,
            )
        self.next = 0  # the next draw
        self.order: list[Candidate] = []

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """The best mask that is left of the next band.

        Raises:
            SearchError: If no mask that the sampler proposed could be judged; gives the reason.
        """
        self.order = self.order or order_of_training(self.rank(), self.bands)
        if self.next >= len(self.order):
            return "done"
        chosen = self.order[self.next]
        self.next += 1
        strategy_state = {"shared_loss": repr(chosen.loss), "band": str(chosen.band)}
        return Proposal(
            self.next - 1,
            Evaluate(chosen.mask),
            dict(chosen.params),
            self.origin,
            strategy_state=strategy_state,
        )

    def tell(self, record: Record) -> None:
        """Learns that a draw is out."""
        self.next = max(self.next, record.number + 1)

    def rank(self) -> list[Candidate]:
        """Every mask that was proposed to the super-net and judged by it, once each."""
        judged: dict[str, Candidate] = {}
        refused = ""
        for start in range(0, self.candidates, AT_ONCE):
            asked = min(AT_ONCE, self.candidates - start)
            opened: list[Record] = []
            while len(opened) < asked:
                proposal = self.proposer.ask()
                if isinstance(proposal, str):
                    break  # a finite space is exhausted
                opened.append(record_of_proposal(proposal, self.shared.shape, self.constraints))
            running = [record for record in opened if record.mask and record.status == "running"]
            fresh = {r.fingerprint: r for r in running if r.fingerprint not in judged}
            losses = self.shared.judge([record.mask for record in fresh.values() if record.mask])
            for record, values in zip(fresh.values(), losses, strict=True):
                if record.mask:
                    judged[record.fingerprint] = Candidate(
                        record.mask, record.params, record.measures["density"], values["loss"]
                    )
            for record in opened:
                if record.status == "running":
                    values = {"loss": judged[record.fingerprint].loss}
                    record = replace(record, status="done", values=values)
                refused = refused or record.reason
                self.proposer.tell(record)
            if len(opened) < asked:
                break
        if not judged:
            raise ms.errors.SearchError(
                f"the super-net has judged no mask: {refused or 'none was proposed'}"
            )
        return [*judged.values()]


def order_of_training(candidates: Sequence[Candidate], bands: int) -> list[Candidate]:
    """All candidates in the order in which they are trained: see `SharedStrategy`.

    Args:
        candidates: In any order, no two with the same mask.
        bands: Largest number of density bands; each holds as many candidates, as far as equal
            densities stay together.
    """
    ranked = sorted(candidate.density for candidate in candidates)
    edges = sorted({ranked[len(ranked) * band // bands] for band in range(1, bands)})
    fronts = nondominated_ranks([(-c.density, -c.loss) for c in candidates])
    placed = [
        replace(candidate, band=sum(candidate.density >= each for each in edges), front=int(front))
        for candidate, front in zip(candidates, fronts, strict=True)
    ]
    queues = [
        sorted(
            (c for c in placed if c.band == band),
            key=lambda c: (c.front, c.loss, c.density, json.dumps(c.mask.to_dict())),
        )
        for band in sorted({c.band for c in placed}, reverse=True)
    ]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def record_of_proposal(
    proposal: Proposal, shape: ms.Shape, constraints: Sequence[Constraint]
) -> Record:
    """A proposal as a record: running, failed (no mask that fits), or stopped (a constraint)."""
    record = Record(
        proposal.number,
        "running",
        proposal.job,
        params=proposal.params,
        strategy_state=proposal.strategy_state,
    )
    if not isinstance(proposal.job, Evaluate):
        reason = proposal.job.reason if isinstance(proposal.job, Refused) else "no mask"
        return replace(record, status="failed", error=reason)
    try:
        print_ = fingerprint(proposal.job.mask, shape)
    except ms.errors.MaskSearchError as error:
        return replace(record, status="failed", error=f"{type(error).__name__}: {error}")
    known = measures(proposal.job.mask, shape)
    record = replace(record, fingerprint=print_, measures=known)
    reason = next(filter(None, (limit.violated_by(record) for limit in constraints)), "")
    return replace(record, status="stopped", error=reason) if reason else record
