"""What a search's front is judged beside: hand-designed masks and random ones of its densities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from masksearch.analysis.candidates import Candidate
from masksearch.analysis.pareto import pareto
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import CandidateError
from masksearch.masks.controls import random_like, sweep_families
from masksearch.masks.core import Mask
from masksearch.masks.measure import effective_density


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
