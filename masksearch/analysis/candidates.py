"""What a comparison is given: masks under names, and seeds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from masksearch.analysis.pareto import pareto
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import CandidateError
from masksearch.masks import parse
from masksearch.masks.checks import whole
from masksearch.masks.core import Mask
from masksearch.masks.families import random_like, sweep_families
from masksearch.masks.measure import effective_density

Candidate = Mask | Record | str  # a mask, what a search recorded of it, or its expression


@dataclass(frozen=True)
class Discovery:
    """How searches found a mask of a comparison."""

    seeds: tuple[int, ...]  # that they scored it with
    protocols: tuple[str, ...]  # ids of what scored it
    same_rows: bool  # whether one of these judges by rows of the comparison


def read_candidates(candidates: Mapping[str, Candidate]) -> dict[str, Mask]:
    """The masks to compare, by name.

    Raises:
        CandidateError: If there are none, or one is no mask; says what to give instead.
        MaskFormatError: If an expression cannot be read.
    """
    if not isinstance(candidates, Mapping):
        raise CandidateError(
            'compare takes masks by name, such as {"mine": masks.window(3)}, got '
            f"{type(candidates).__name__}"
        )
    if not candidates:
        raise CandidateError("compare needs at least one mask, got an empty mapping")
    return {name: read_candidate(name, each) for name, each in candidates.items()}


def read_candidate(name: str, candidate: Candidate) -> Mask:
    """One mask; `name` is for the error."""
    if isinstance(candidate, Mask):
        return candidate
    if isinstance(candidate, str):
        return parse(candidate)
    if isinstance(candidate, Record):
        if candidate.mask is not None:
            return candidate.mask
        raise CandidateError(
            f"{name!r}: trial {candidate.number} has no mask to compare; choose another one"
        )
    found = f"a {type(candidate).__name__}"
    if candidate is None:
        found = "None"
    elif isinstance(candidate, Tensor):
        found = f"a tensor {list(candidate.shape)}; masks.table(tensor) makes a mask of it"
    elif callable(candidate):
        found = f"{getattr(candidate, '__name__', candidate)} itself: call it, and give the mask"
    raise CandidateError(
        f"{name!r} is to be a mask, a record of a study, or an expression such as 'window(3)', "
        f"got {found}"
    )


def read_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds, each once.

    Raises:
        CandidateError: If they are not whole numbers, or there are none.
    """
    if (count := whole(seeds)) is not None:
        raise CandidateError(
            f"seeds are several whole numbers, got {count}: give seeds=range({max(count, 2)}) for "
            f"{max(count, 2)} seeds"
        )
    given = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    numbers = [number for seed in given if (number := whole(seed)) is not None]
    if not given or len(numbers) < len(given):
        raise CandidateError(
            "compare needs at least one seed, each a whole number, such as seeds=range(3), got "
            f"{given}"
        )
    return list(dict.fromkeys(numbers))


def from_a_search(candidate: Candidate) -> bool:
    """Whether a candidate is what a search proposed: a record, but not of a baseline."""
    return isinstance(candidate, Record) and candidate.role == "trial"


def read_discoveries(
    records: Mapping[str, Record],
    protocols: Collection[str],
    known: Mapping[str, Discovery] | None = None,
) -> dict[str, Discovery]:
    """How masks were found.

    Args:
        records: Name -> what a search recorded of the mask.
        protocols: Ids of what judges by rows of the comparison.
        known: Earlier discoveries of these masks, under the same names.
    """
    found = dict(known or {})
    for name, record in records.items():
        before = found.get(name, Discovery((), (), False))
        found[name] = Discovery(
            tuple(sorted({*before.seeds, record.seed})),
            tuple(sorted({*before.protocols, record.protocol})),
            before.same_rows or record.protocol in protocols,
        )
    return found


def discoveries_json(found: Mapping[str, Discovery]) -> str:
    """For the facts of a comparison."""
    return json.dumps({name: asdict(each) for name, each in found.items()})


def stored_discoveries(facts: Mapping[str, str]) -> dict[str, Discovery]:
    """Inverse of `discoveries_json`; empty for comparisons of earlier versions."""
    stored = json.loads(facts.get("found_with", "{}"))
    return {
        name: Discovery(tuple(each["seeds"]), tuple(each["protocols"]), each["same_rows"])
        for name, each in stored.items()
    }


def describe_reuse(found: Mapping[str, Discovery], seeds: Collection[int], half: str) -> list[str]:
    """What flatters the masks of searches: seeds and rows that found them and judge them too.

    Args:
        found: How each was found.
        seeds: Those of the comparison.
        half: Of the rows that judge; empty where the evaluator has no halves.
    """
    lines: list[str] = []
    for name, each in found.items():
        if both := sorted(set(each.seeds) & set(seeds)):
            lines.append(
                f"{name} was found with seed {', '.join(map(str, both))}, which judges it too: "
                "its score is flattered; judge by other seeds"
            )
        if each.same_rows and half:
            lines.append(
                f"{name} was found on rows that judge it too (half={half!r}): its score is "
                "flattered; judge by rows that no search has seen (half='final' or 'test')"
            )
    return lines


# -- the front of a search ---------------------------------------------------------------------
@dataclass(frozen=True)
class FrontCandidates:
    """The masks of a comparison of fronts.

    Args:
        records: Name (`"front #7"`: trial 7) -> what the search recorded of the mask.
        hand_designed: Members of `masks.FAMILIES`, as many.
        random: `"random like front #7"` -> a mask of that one's effective density.
    """

    records: Mapping[str, Record]
    hand_designed: Mapping[str, Mask]
    random: Mapping[str, Mask]

    @property
    def kinds(self) -> dict[str, str]:
        """What each of them is."""
        return {
            **dict.fromkeys(self.records, "searched"),
            **dict.fromkeys(self.hand_designed, "hand-designed"),
            **dict.fromkeys(self.random, "control"),
        }

    def promised(self, score: Objective, protocols: Collection[str]) -> dict[str, float | None]:
        """What the search scored its masks with; None where another protocol has scored them.

        Args:
            score: Of the comparison.
            protocols: Ids of the comparison's protocol, on any rows.
        """
        return {
            name: record.values.get(score.name) if record.protocol in protocols else None
            for name, record in self.records.items()
        }

    def beside(self, candidates: Mapping[str, Candidate]) -> dict[str, Candidate]:
        """All of them, and a caller's own candidates.

        Raises:
            CandidateError: If one of these has the name of another mask.
        """
        own: dict[str, Candidate] = {**self.records, **self.hand_designed, **self.random}
        for name, candidate in candidates.items():
            if own.get(name, candidate) != candidate:
                raise CandidateError(
                    f"{name!r} is the name of a mask that front_of= adds itself; give yours "
                    "another one"
                )
        return {**own, **candidates}


def name_alike(name: str) -> str:
    """Name of the random mask that a mask of the front is judged beside."""
    return f"random like {name}"


def read_front(
    run: object, records: Sequence[Record], objectives: Sequence[Objective], shape: Shape
) -> FrontCandidates:
    """The front of what a search's strategy has proposed, and its opponents.

    Args:
        run: Folder of the search, for the error.
        records: Of the search.
        objectives: Of the search.
        shape: What the comparison lowers masks to; densities are effective ones.

    Raises:
        CandidateError: If the search has no front.
    """
    front = pareto([record for record in records if record.role != "baseline"], objectives)
    if not front:
        raise CandidateError(
            f"{run} has no front to judge: none of its {len(records)} trials is a finished one of "
            "its strategy that has learned something; search on"
        )
    named = {f"front #{record.number}": record for record in front}
    found = {name: record.mask for name, record in named.items() if record.mask is not None}
    densities = [effective_density(mask, shape) for mask in found.values()]
    alike = {
        name_alike(name): random_like(mask, shape, seed)
        for seed, (name, mask) in enumerate(found.items())
    }
    return FrontCandidates(named, sweep_families(shape, densities), alike)
