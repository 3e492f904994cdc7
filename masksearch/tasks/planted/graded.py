"""Sequences with planted dependencies of unequal worth, so that the true front is known.

process = GradedProcess()
process.expected(masks.window(2))                # best accuracy that this mask allows: exact
[(point.sparsity, point.accuracy) for point in process.front]   # nothing lies above these
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masksearch import masks
from masksearch.files import text_hash
from masksearch.masks.core import Mask

Curve = NDArray[np.float64]  # accuracy by the number of kept keys
HEADROOM = 1e-12  # accuracies that close are equal


@dataclass(frozen=True)
class Dependency:
    """Positions that share a hidden symbol, which each of them shows or does not.

    Args:
        part: The part of a token that shows the symbol, from 0.
        positions: Who shares it, in rising order (at least 2). Position 0 always shows the
            symbol and is never masked: it is the token that the others depend on.
        reliability: Probability, in (0, 1], that a position shows the symbol and not a random
            one. A less reliable dependency is worth less.
    """

    part: int
    positions: tuple[int, ...]
    reliability: float

    @property
    def members(self) -> tuple[int, ...]:
        """The positions that may be masked: all but position 0."""
        return tuple(position for position in self.positions if position)

    @property
    def has_token(self) -> bool:
        """Whether position 0 shares the symbol."""
        return self.positions[0] == 0


def _graded_dependencies(length: int = 21) -> tuple[Dependency, ...]:
    """Near, token and far: two dependencies of the first part, one of the second.

    - near: positions 3 i + 1 .. 3 i + 3 of the first three quarters share a symbol (0.95);
    - token: the last quarter shares one with position 0 (0.9);
    - far: s, s + d, s + 2 d, .. with d = length // 4 share one (0.8).

    Args:
        length: Positions of the sequence (>= 12).
    """
    quarter = length // 4
    blocks = range(1, length - quarter, 3)
    end = blocks[-1] + 3
    near = (Dependency(0, tuple(range(first, first + 3)), 0.95) for first in blocks)
    token = Dependency(0, (0, *range(end, length)), 0.9)
    columns = (range(first, length, quarter) for first in range(1, quarter + 1))
    far = (Dependency(1, tuple(column), 0.8) for column in columns)
    return (*near, token, *far)


@cache
def certainty(reliability: float, symbols: int, votes: int) -> float:
    """Probability that the likeliest symbol is the shared one, given that many votes.

    A vote names the shared symbol with probability a = r + (1 - r) / s, each other one with
    b = (1 - r) / s. Of the counts c of the votes, the sum of multinomial(c) / s *
    max over symbols z of a^c[z] b^(votes - c[z]).

    Args:
        reliability: r, in (0, 1].
        symbols: s.
        votes: Number of votes, from 0.
    """
    other = (1 - reliability) / symbols
    share = reliability + other
    total = 0.0
    for counts in splits(votes, symbols):
        ways = math.factorial(votes) / math.prod(map(math.factorial, counts))
        total += ways * share ** max(counts) * other ** (votes - max(counts)) / symbols
    return total


def splits(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write a number as an ordered sum of `parts` numbers from 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        yield from ((first, *rest) for rest in splits(total - first, parts - 1))


def best_sum(first: Curve, second: Curve) -> tuple[Curve, NDArray[np.int64]]:
    """The largest sum of two curves at every total number of keys, and the second one's share."""
    total = np.full(len(first) + len(second) - 1, -np.inf)
    share = np.zeros(len(total), np.int64)
    for count, value in enumerate(second):
        reached = slice(count, count + len(first))
        better = first + value > total[reached] + HEADROOM
        total[reached][better] = (first + value)[better]
        share[reached][better] = count
    return total, share


@dataclass(frozen=True)
class FrontPoint:
    """A point of the true front."""

    sparsity: float  # share of the pairs of positions that the mask leaves out
    accuracy: float  # largest expected accuracy of any mask of this sparsity or more
    mask: Mask  # a table that allows it


@dataclass(frozen=True)
class GradedProcess:
    """A planted process in which every dependency that a mask keeps raises the accuracy.

    A token is a tuple of parts, each one of `symbols` symbols: its id is the sum of
    part[i] * symbols^i. The positions of a dependency share a hidden symbol, uniform and drawn
    for each sequence; each of them shows it in its part of the token with the dependency's
    reliability, and otherwise, like every part without a dependency, an independent uniform one.
    Position 0 always shows the symbols that it shares, and is never masked. So a masked part is
    guessed from the votes of the positions that share its symbol: every further vote helps, each
    less than the one before, and none needs another one. The accuracy counts the parts that have
    a dependency, over the masked tokens.

    That accuracy is known exactly for every mask, for a reader who combines only what a position
    may see (one attention layer; more can carry votes further): see `expected` and `front`.

    Ids: tokens 0 .. vocabulary - 1, then the mask id.

    Args:
        length: Positions of a sequence (>= 12 for the default dependencies).
        symbols: Symbols of each part (>= 2).
        dependencies: Who shares symbols; () = `graded_dependencies(length)`. A part of a
            position is in one dependency at most, and two positions share one symbol at most.
        hidden: Probability, in (0, 1), that a position other than 0 is masked.
        seed: Seed of the held-out sequences.

    Raises:
        ValueError: If a value is out of its range, or dependencies overlap.

    >>> process = GradedProcess()
    >>> round(process.chance, 3), round(process.ceiling, 3), len(process.front)
    (0.333, 0.855, 76)
    """

    length: int = 21
    symbols: int = 3
    dependencies: tuple[Dependency, ...] = ()
    hidden: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.symbols < 2:
            raise ValueError(f"symbols must be at least 2, got {self.symbols}")
        if not 0 < self.hidden < 1:
            raise ValueError(f"hidden is a probability in (0, 1), got {self.hidden}")
        if not self.dependencies:
            if self.length < 12:
                raise ValueError(
                    f"the default dependencies need at least 12 positions, got {self.length}; "
                    "raise length or give dependencies"
                )
            object.__setattr__(self, "dependencies", _graded_dependencies(self.length))
        object.__setattr__(self, "dependencies", tuple(self.dependencies))
        _check_dependencies(self.length, self.dependencies)

    @property
    def parts(self) -> int:
        """Number of parts of a token."""
        return 1 + max(dependency.part for dependency in self.dependencies)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: symbols^parts."""
        return int(self.symbols**self.parts)

    @property
    def ids(self) -> int:
        """Number of token ids: the vocabulary and the mask id."""
        return self.vocabulary + 1

    @property
    def mask_id(self) -> int:
        """The id that masks a token."""
        return self.vocabulary

    @property
    def chance(self) -> float:
        """Expected accuracy of a reader who sees nothing: 1 / symbols."""
        return 1 / self.symbols

    @property
    def ceiling(self) -> float:
        """Largest expected accuracy of any mask: that of dense attention and of `oracle`."""
        return self.expected(masks.full())

    @cached_property
    def asked(self) -> Tensor:
        """Marks of the parts that count, by position: bool `[length, parts]`."""
        table = torch.zeros(self.length, self.parts, dtype=torch.bool)
        for dependency in self.dependencies:
            table[list(dependency.members), dependency.part] = True
        return table

    @cached_property
    def edges(self) -> Tensor:
        """Whom a masked token needs: bool `[length, length]`, query by key, without the diagonal.

        Every position that shares a symbol with it; of those that share position 0's, that one
        alone, since it is certain.
        """
        needed = torch.zeros(self.length, self.length, dtype=torch.bool)
        for dependency in self.dependencies:
            rows = torch.tensor(dependency.members)
            needed[rows[:, None], torch.tensor([0]) if dependency.has_token else rows] = True
        return needed.fill_diagonal_(False)

    @cached_property
    def oracle(self) -> Mask:
        """The sparsest mask that loses nothing: `edges`, and the diagonal where a row is empty."""
        kept = self.edges.clone()
        empty = torch.where(~kept.any(1))[0]
        kept[empty, empty] = True
        return masks.table(kept)

    def expected(self, mask: Mask) -> float:
        """Largest expected accuracy of a reader who sees what the mask lets a position see.

        The mean over the counted parts of r * E[certainty(votes)] + (1 - r) / symbols, with r
        the dependency's reliability, over the votes of those kept keys that are not masked;
        with position 0 kept, the certainty is 1.

        Args:
            mask: Any mask; a key counts where any head of the first layer keeps it.
        """
        kept = mask.dense(self.length)[0].any(0)
        total = 0.0
        for dependency in self.dependencies:
            members = torch.tensor(dependency.members)
            votes = kept[members[:, None], members].fill_diagonal_(False).sum(1)
            for count, sees_token in zip(
                votes.tolist(), (kept[members, 0] & dependency.has_token).tolist(), strict=True
            ):
                total += self.accuracy(dependency, count, sees_token)
        return total / int(self.asked.sum())

    def accuracy(self, dependency: Dependency, kept: int, sees_token: bool = False) -> float:
        """Expected accuracy of a member who may attend to that many others, each masked with
        probability `hidden`, and perhaps to position 0."""
        sure = 0.0
        for votes in range(kept + 1):
            share = math.comb(kept, votes) * (1 - self.hidden) ** votes
            share *= self.hidden ** (kept - votes)
            sure += share * certainty(dependency.reliability, self.symbols, votes)
        reliability = dependency.reliability
        return reliability * (1.0 if sees_token else sure) + (1 - reliability) / self.symbols

    @cached_property
    def front(self) -> tuple[FrontPoint, ...]:
        """The true front: no mask lies above, that all heads share; sparsest first.

        Exact. A row's accuracy is a sum over its dependencies, each a function of how many of
        its members are kept, and two dependencies of a row have no key in common. So the best
        row with c keys is the best division of c among them, and the best mask with a number of
        keys the best division of that among the rows (dynamic programming over both).
        """
        total, shares, rows = np.zeros(1), [], []
        for position in range(self.length):
            curve, choices = self.row(position)
            rows.append(choices)
            total, share = best_sum(total, curve)
            shares.append(share)
        best = -np.inf
        points = []
        for count in range(self.length, len(total)):
            if total[count] <= best + HEADROOM:
                continue
            best, left = total[count], count
            kept = torch.zeros(self.length, self.length, dtype=torch.bool)
            for position in reversed(range(self.length)):
                taken = int(shares[position][left])
                kept[position, rows[position][taken]] = True
                left -= taken
            sparsity = 1 - count / self.length**2
            accuracy = float(best) / int(self.asked.sum())
            points.append(FrontPoint(sparsity, accuracy, masks.table(kept)))
        return tuple(points)

    def row(self, position: int) -> tuple[Curve, list[list[int]]]:
        """A row's best accuracy by its number of keys, summed over its parts (-inf with none),
        and the keys that reach it."""
        curve, choices = np.zeros(1), [list[int]()]
        for dependency in self.dependencies:
            if position not in dependency.members:
                continue
            mates = [mate for mate in dependency.members if mate != position]
            mates_kept = [mates[:count] for count in range(len(mates) + 1)]
            values = [self.accuracy(dependency, count) for count in range(len(mates_kept))]
            if dependency.has_token:
                mates_kept[1:], values[1:] = [[0]], [self.accuracy(dependency, 0, sees_token=True)]
            curve, share = best_sum(curve, np.array(values))
            choices = [
                choices[n - int(taken)] + mates_kept[taken] for n, taken in enumerate(share)
            ]
        if len(curve) == 1:  # nothing to see: the row keeps itself
            return np.array([-np.inf, curve[0]]), [[], [position]]
        return np.concatenate([[-np.inf], curve[1:]]), choices

    @cached_property
    def digest(self) -> str:
        """Short hash of everything that the distribution depends on."""
        fields = (self.length, self.symbols, self.hidden, self.seed)
        return text_hash(repr(("graded-1", fields, [astuple(each) for each in self.dependencies])))

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Draws sequences: int64 `[count, length]`."""
        parts = torch.randint(self.symbols, (count, self.length, self.parts), generator=random)
        for dependency in self.dependencies:
            at = list(dependency.positions)
            symbol = torch.randint(self.symbols, (count, 1), generator=random)
            shown = torch.rand(count, len(at), generator=random) < dependency.reliability
            shown |= torch.tensor(at) == 0
            parts[:, at, dependency.part] = symbol.where(shown, parts[:, at, dependency.part])
        return parts @ self.places

    @property
    def places(self) -> Tensor:
        """The number that a step of each part adds to an id: int64 `[parts]`."""
        return self.symbols ** torch.arange(self.parts)

    def mark(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Counts right answers, and all that are asked for.

        Args:
            predicted: Token ids `[count, length]`.
            labels: int64 `[count, length]`; -100 = not scored.

        Returns:
            Parts that are right, parts that are asked for: int64 `[count, length]` each.
        """
        asked = self.asked & (labels != -100)[:, :, None]
        answers, true = (
            tokens[:, :, None] // self.places % self.symbols for tokens in (predicted, labels)
        )
        return (asked & (answers == true)).sum(-1), asked.sum(-1)


def _check_dependencies(length: int, dependencies: Sequence[Dependency]) -> None:
    """Raises ValueError unless the true front of these dependencies is a sum over them."""
    parts, shared = set[tuple[int, int]](), set[frozenset[int]]()
    for dependency in dependencies:
        at = dependency.positions
        if len(at) < 2 or sorted(set(at)) != list(at) or at[0] < 0 or at[-1] >= length:
            raise ValueError(
                f"positions are two or more of 0 .. {length - 1} in rising order, got {at}"
            )
        if not 0 < dependency.reliability <= 1 or dependency.part < 0:
            raise ValueError(
                "a dependency has a reliability in (0, 1] and a part from 0, got reliability="
                f"{dependency.reliability}, part={dependency.part}"
            )
        cells = {(position, dependency.part) for position in at}
        together = {frozenset((one, two)) for one in at for two in at if one < two}
        if cells & parts or together & shared:
            raise ValueError(
                f"the dependency of positions {at} in part {dependency.part} overlaps with "
                "another one; a part of a position is in one dependency, and two positions "
                "share one symbol at most"
            )
        parts |= cells
        shared |= together
