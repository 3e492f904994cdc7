"""A super-net judges hundreds of masks; the best of every density band are trained for real.

The first job of the study trains the super-net and lets a sampler propose masks to it
(`run_shared`); its artifact is a ranking. From then on the strategy proposes masks out of that
ranking, each an ordinary job of the same study.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from masksearch.analysis.pareto import nondominated_ranks
from masksearch.contracts import (
    Evaluate,
    Evaluator,
    Job,
    Objective,
    Proposal,
    Record,
    Refused,
    Report,
    Shape,
    Shared,
    Strategy,
)
from masksearch.errors import MaskFormatError, MaskSearchError, SearchError
from masksearch.files import write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.masks.measure import MEASURES, measures, table_fingerprint
from masksearch.strategies.evolution import EvolutionStrategy
from masksearch.strategies.first_job import AfterFirstJob
from masksearch.strategies.samplers import SAMPLERS, OptunaStrategy, Space
from masksearch.study.records import Constraint, parse_constraint

RANKING_FILE = "ranking.json"
FORMAT = "masksearch-ranking-1"
PREFIX = "shared+"
NAMES = tuple(f"{PREFIX}{name}" for name in ("tpe", "random", "evolution"))
OPTIONS = {  # name -> type; those that are not of `SharedWeights` come last
    **{"steps": int | None, "masks_per_step": int, "sandwich": bool, "lr": float | None},
    **{"adapt_steps": int, "adapt_lr": float | None, "held_out_sequences": int | None},
    **{"candidates": int, "bands": int},
}
CANDIDATES = 300  # masks that the super-net judges
BANDS = 4  # of density, each with as many ranked masks
AT_ONCE = 8  # masks that are proposed before the super-net judges them
REPORTS = 20  # of the judging


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

    mask: Mask
    params: Mapping[str, Any]
    density: float
    loss: float
    band: int = 0
    front: int = 0


class SharedStrategy(AfterFirstJob):
    """Proposes the training of a super-net, then the masks that it ranks best.

    The masks are taken in turn from bands of density, from the densest to the sparsest and again:
    in each band first those nearest to the super-net's Pareto front, among these the best loss.
    Any number of trials is so spread over the front.

    Args:
        run: Folder that artifacts are relative to.
        space: Draws the masks.
        name: `"shared+tpe"`, `"shared+random"` or `"shared+evolution"`: who proposes masks to
            the super-net.
        options: `steps`, `masks_per_step`, `sandwich`, `lr`, `adapt_steps`, `adapt_lr`,
            `held_out_sequences` (see `SharedWeights`), `candidates` (masks to judge) and
            `bands` (of density); plain data.
        constraints: Of the search: masks that violate one that is known without training are not
            judged, and the sampler learns so.
        budgets: What the masks that are proposed to the super-net may cost, in turn.

    Raises:
        ValueError: If `candidates` or `bands` is below 1.
    """

    def __init__(
        self,
        run: Path,
        space: Space,
        *,
        name: str = "shared+tpe",
        options: Mapping[str, Any] | None = None,
        constraints: Sequence[Constraint] = (),
        budgets: Sequence[float] = (),
    ) -> None:
        given = dict(options or {})
        for option in ("candidates", "bands"):
            if given.get(option, 1) < 1:
                raise ValueError(f"{option} must be at least 1, got {given[option]}")
        super().__init__(run, name, "ranking")
        self.space = space
        self.bands = int(given.pop("bands", BANDS))
        self.config = {
            "sampler": name.removeprefix(PREFIX),
            "candidates": int(given.pop("candidates", CANDIDATES)),
            "constraints": [str(limit) for limit in constraints if limit.name in MEASURES],
            "net": given,
            **({"budgets": list(budgets)} if budgets else {}),
        }
        self.order: list[Candidate] = []

    def ask(self) -> Proposal | Literal["wait", "done"]:
        """First the super-net, then one mask after the other.

        Raises:
            SearchError: If the super-net's job has failed; gives its reason.
        """
        if self.next == 0:
            return self.propose(Shared(self.config, self.space))
        if self.lost:
            raise SearchError(
                f"strategy {self.origin!r} has no super-net, its training failed: {self.lost}; "
                "remove the cause and search in another run folder, or use another strategy"
            )
        if not (path := self.left.get(0)):
            return "wait"
        self.order = self.order or order_of_training(read_ranking(path), self.bands)
        if self.next > len(self.order):
            return "done"
        chosen = self.order[self.next - 1]
        memo = {"shared_loss": repr(chosen.loss), "band": str(chosen.band)}
        return self.propose(Evaluate(chosen.mask), dict(chosen.params), memo=memo)

    def equipped(self, job: Job) -> Job:
        """A stored job with the space again, which a study cannot hold."""
        return replace(job, space=self.space) if isinstance(job, Shared) else job


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


# -- the job -----------------------------------------------------------------------------------
def run_shared(evaluator: Evaluator, job: Shared, *, seed: int, workdir: Path) -> Iterator[Report]:
    """Trains a super-net, has masks proposed to it, and writes `workdir / "ranking.json"`.

    The super-net is kept in `workdir / "supernet"` with checkpoints; a job that was killed goes on
    from there and judges the same masks again.

    Args:
        evaluator: With `differentiable(seed)`.
        job: `config` as `SharedStrategy` makes it; `space` draws the masks.
        seed: Of the super-net and of the proposals.
        workdir: Made if missing.

    Yields:
        Reports of the training (`supernet_loss`), then of the judging (`judged`, `shared_loss`:
        the lowest so far).

    Raises:
        SearchError: If the job has no space, the evaluator no `differentiable`, or no mask that
            the sampler proposed could be judged.
    """
    from masksearch.evaluators.shared import SharedWeights

    if job.space is None:
        raise SearchError("the job of a super-net needs its space; it came without one")
    config = dict(job.config)
    shared = SharedWeights(
        evaluator, job.space, seed=seed, folder=workdir / "supernet", **config["net"]
    )
    yield from shared.prepare()
    constraints = [parse_constraint(text) for text in config["constraints"]]
    limits = {"constraints": constraints, "budgets": config.get("budgets", ())}
    inner = proposer(config["sampler"], job.space, shared.objectives, seed, limits)
    found: dict[str, Candidate] = {}
    wanted, refused = config["candidates"], ""
    for start in range(0, wanted, AT_ONCE):
        opened: list[Record] = []
        while len(opened) < min(AT_ONCE, wanted - start):
            proposal = inner.ask()
            if isinstance(proposal, str):
                break  # a finite space is exhausted
            opened.append(record_of_proposal(proposal, shared.shape, constraints))
        running = {r.fingerprint: (r, r.mask) for r in opened if r.status == "running" and r.mask}
        fresh = {key: each for key, each in running.items() if key not in found}
        judged = shared.judge([mask for _, mask in fresh.values()])
        for (key, (record, mask)), values in zip(fresh.items(), judged, strict=True):
            found[key] = Candidate(mask, record.params, record.measures["density"], values["loss"])
        for record in opened:
            if record.status == "running":
                loss = found[record.fingerprint].loss
                record = replace(record, status="done", values={"loss": loss})
            refused = refused or record.reason
            inner.tell(record)
        done, every = start + len(opened), max(AT_ONCE, wanted // REPORTS)
        if found and (done // every > start // every or done >= wanted):
            best = min(candidate.loss for candidate in found.values())
            yield Report(
                shared.config.steps + done, {"judged": float(len(found)), "shared_loss": best}
            )
        if len(opened) < min(AT_ONCE, wanted - start):
            break
    if not found:
        raise SearchError(f"the super-net has judged no mask: {refused or 'none was proposed'}")
    write_ranking(workdir / RANKING_FILE, found.values(), shared.protocol)


def proposer(
    sampler: str,
    space: Space,
    objectives: Sequence[Objective],
    seed: int,
    limits: Mapping[str, Any],
) -> Strategy:
    """Who proposes masks to the super-net, within the limits (`constraints` and `budgets`)."""
    if sampler == "evolution":
        return EvolutionStrategy(space, objectives, seed=seed, **limits)
    return OptunaStrategy(
        space, objectives, sampler=SAMPLERS[sampler], seed=seed, name=PREFIX + sampler, **limits
    )


def record_of_proposal(
    proposal: Proposal, shape: Shape, constraints: Sequence[Constraint]
) -> Record:
    """A proposal as a record: running, failed (no mask that fits), or stopped (a constraint)."""
    record = Record(
        proposal.number, "running", proposal.job, params=proposal.params, memo=proposal.memo
    )
    if not isinstance(proposal.job, Evaluate):
        reason = proposal.job.reason if isinstance(proposal.job, Refused) else "no mask"
        return replace(record, status="failed", error=reason)
    try:
        table = lower(proposal.job.mask, shape)
    except MaskSearchError as error:
        return replace(record, status="failed", error=f"{type(error).__name__}: {error}")
    known = measures(proposal.job.mask, shape)
    record = replace(record, fingerprint=table_fingerprint(table), measures=known)
    reason = next(filter(None, (limit.violated_by(record) for limit in constraints)), "")
    return replace(record, status="stopped", error=reason) if reason else record


def write_ranking(path: Path, candidates: Iterable[Candidate], protocol: str) -> None:
    """Writes candidates, best loss first, in one step."""
    rows = [
        {
            "mask": candidate.mask.to_dict(),
            "params": dict(candidate.params),
            "density": candidate.density,
            "loss": candidate.loss,
        }
        for candidate in sorted(candidates, key=lambda c: (c.loss, c.density))
    ]
    data = {"format": FORMAT, "protocol": protocol, "ranking": rows}
    write_text_in_one_move(path, json.dumps(data))


def read_ranking(path: Path) -> list[Candidate]:
    """Inverse of `write_ranking`.

    Raises:
        FileNotFoundError: If there is no such file.
        MaskFormatError: If it holds no ranking.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, expected {FORMAT!r}")
        return [
            Candidate(Mask.from_dict(row["mask"]), row["params"], row["density"], row["loss"])
            for row in data["ranking"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise MaskFormatError(f"{path} holds no ranking of a super-net: {error}") from error
