"""What a comparison is given: masks under names, and seeds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import Tensor

from masksearch.analysis.pareto import pareto
from masksearch.analysis.runs import Found, Kind
from masksearch.contracts import Objective, Record, Shape
from masksearch.errors import CandidateError
from masksearch.masks import parse
from masksearch.masks.checks import whole
from masksearch.masks.core import Mask
from masksearch.masks.families import random_like, sweep_families
from masksearch.masks.measure import effective_density

Candidate = Mask | Record | str  # a mask, what a search recorded of it, or its expression


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


def describe_reuse(found: Mapping[str, Found], seeds: Collection[int], half: str) -> list[str]:
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
def name_alike(name: str) -> str:
    """Name of the random mask that a mask of the front is judged beside."""
    return f"random like {name}"


def read_front(
    run: object, records: Sequence[Record], objectives: Sequence[Objective]
) -> dict[str, Record]:
    """`"front #7"` (trial 7) -> its record, for the front of what a search's strategy proposed.

    Args:
        run: Folder of the search, for the error.
        records: Of the search.
        objectives: Of the search.

    Raises:
        CandidateError: If the search has no front.
    """
    front = pareto([record for record in records if record.role != "baseline"], objectives)
    if not front:
        raise CandidateError(
            f"{run} has no front to judge: none of its {len(records)} trials is a finished one of "
            "its strategy that has learned something; search on"
        )
    return {f"front #{record.number}": record for record in front}


def join_front(
    front: Mapping[str, Record], candidates: Mapping[str, Candidate], shape: Shape
) -> tuple[dict[str, Candidate], dict[str, Kind]]:
    """A front, its opponents and a caller's own candidates; and what the first two are.

    As many members of `masks.FAMILIES` and as many random masks have the front's densities.

    Args:
        front: Of `read_front`.
        candidates: The caller's own.
        shape: What the comparison lowers masks to; densities are effective ones.

    Raises:
        CandidateError: If one of these has the name of another mask.
    """
    found = {name: record.mask for name, record in front.items() if record.mask is not None}
    hand = sweep_families(shape, [effective_density(mask, shape) for mask in found.values()])
    alike = {
        name_alike(name): random_like(mask, shape, seed)
        for seed, (name, mask) in enumerate(found.items())
    }
    own: dict[str, Candidate] = {**front, **hand, **alike}
    for name, candidate in candidates.items():
        if own.get(name, candidate) != candidate:
            raise CandidateError(
                f"{name!r} is the name of a mask that front_of= adds itself; give yours "
                "another one"
            )
    kinds: dict[str, Kind] = {**dict.fromkeys(front, "searched")}
    kinds |= {**dict.fromkeys(hand, "hand-designed"), **dict.fromkeys(alike, "control")}
    return {**own, **candidates}, kinds
