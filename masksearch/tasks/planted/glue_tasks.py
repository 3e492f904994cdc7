"""The rules of the planted corpus's four GLUE-shaped tasks, and the edges that each one needs.

task = PlantedGlueTask("paraphrase", process)
tokens, labels = task.draw(64, generator(0))
task.texts(tokens)[0], task.pairs, task.oracle()
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from masksearch import masks
from masksearch.errors import DataError
from masksearch.masks.core import Mask
from masksearch.tasks.glue.tasks import PLANTED, GlueTask, task_named
from masksearch.tasks.planted.process import Groups, PlantedProcess


@dataclass(frozen=True)
class PlantedGlueTask:
    """One of four tasks whose labels depend on planted pairs of words and on nothing else.

    A sequence is `[CLS] w w .. w [SEP]`: the word at position p >= 1 is token p of the process,
    position 0 is [CLS] and position `process.length` is [SEP]. Where a task has two sentences,
    the word at position `cut` gives way to [SEP]: `[CLS] a [SEP] b [SEP]` is as long, every other
    word stays where it was in pre-training, and the pairs (s, t) with s < cut < t have one word
    in each sentence. All words are uniform (but in the mismatched set), alone and in any set that
    holds no whole pair, so nobody beats the majority who cannot compare the words of a pair. A
    model compares them where one sees the other, or at a third position that sees both.

    - acceptability (CoLA): 1 = a sequence of the process, 0 = in one random pair the second word
      is replaced by another one. Without one of the P pairs, 1 / (2 P) of the rows go wrong.
    - paraphrase (MRPC): 1 = the second sentence keeps all that the pairs determine, its other
      words are new; 0 = one to c of the c pairs, each number as often, are broken.
    - entailment (MNLI): 0 = every pair holds; in one random pair the second word is replaced by
      its opposite (2 = contradiction) or by a word that is neither (1 = neutral). The opposite
      of a word with relabelling r is the word with r + vocabulary // 2. In the mismatched set
      the words are not uniform (word i has a probability proportional to 1 / (i + 1)); the rule
      is the same.
    - similarity (STS-B): 5 m / c, where m of the c pairs hold; each m in 0 .. c as often.

    The labels are balanced to within one row, so the majority scores: acceptability Matthews 0,
    paraphrase accuracy 1/2, entailment accuracy 1/3, similarity correlation 0. Every metric's
    ceiling is 1, since a replaced word always differs from the true one (similarity's scores are
    written with three digits, which costs its correlations less than 1e-6).

    Args:
        name: A name of `PLANTED`.
        process: The distribution; one key, one parent, a vocabulary of at least 3 words.

    Raises:
        UnknownNameError: For an unknown name.
        DataError: For the name of an official task.
        ValueError: If the process does not fit, or no pair can lie across two sentences.
    """

    name: str
    process: PlantedProcess

    def __post_init__(self) -> None:
        if self.name not in PLANTED:
            task_named(self.name)  # raises, unless it is one of the official tasks
            raise DataError(f"{self.name} is not planted; the planted tasks: {', '.join(PLANTED)}")
        if self.process.keys != 1 or self.process.parents != 1:
            raise ValueError(
                "planted GLUE tasks need a process with keys=1 and parents=1 (position 0 is "
                f"[CLS]), got keys={self.process.keys}, parents={self.process.parents}"
            )
        if self.process.vocabulary < 3:
            raise ValueError(
                "planted GLUE tasks need a vocabulary of at least 3 words (a word, its opposite "
                f"and a third), got {self.process.vocabulary}"
            )
        if not self.pairs:
            raise ValueError(
                f"no pair of {self.process.pairs} has a word on each side of a separator; use a "
                "larger offset or length"
            )

    @property
    def row(self) -> GlueTask:
        """The task's row in the table."""
        return PLANTED[self.name]

    @property
    def length(self) -> int:
        """Positions of a sequence with its special tokens."""
        return self.process.length + 1

    @cached_property
    def cut(self) -> int:
        """Position of the [SEP] between two sentences: the one that most pairs lie across, the
        nearest to the middle among equals.
        """
        return min(
            range(2, self.process.length - 1),
            key=lambda at: (-len(across(self.process, at)), abs(2 * at - self.process.length)),
            default=0,
        )

    @cached_property
    def pairs(self) -> Groups:
        """The pairs of positions that the label depends on."""
        if self.row.kind == "single":
            return self.process.pairs
        return across(self.process, self.cut)

    @property
    def ceiling(self) -> float:
        """Largest value of every metric."""
        return 1.0

    def oracle(self, length: int | None = None) -> Mask:
        """The mask that shows every pair and nothing else: both directions of `pairs`, and the
        diagonal so that no row is empty. Pre-training needs both directions, a label one of them.

        Args:
            length: Positions of the mask; default and least value `self.length`. At more, the
                further positions hold padding. Pre-training packs text without padding, so only
                at `self.length` is one packed sequence one line of the text.

        Returns:
            A table, bool `[length, length]`.

        Raises:
            ValueError: If `length` is too small.
        """
        length = self.length if length is None else length
        if length < self.length:
            raise ValueError(
                f"length must be at least {self.length} ([CLS], {self.length - 2} words, [SEP]), "
                f"got {length}"
            )
        kept = torch.eye(length, dtype=torch.bool)
        first, second = torch.tensor(self.pairs).T
        kept[first, second] = kept[second, first] = True
        return masks.table(kept)

    def texts(self, tokens: Tensor) -> list[tuple[str, ...]]:
        """Sequences as one or two sentences of words.

        Args:
            tokens: int64 `[count, process.length]`; position 0 is left out.
        """
        digits = max(2, len(str(self.process.vocabulary - 1)))
        words = [f"w{token:0{digits}d}" for token in range(self.process.vocabulary)]
        spelled = [[words[token] for token in row] for row in tokens.tolist()]
        if self.row.kind == "single":
            return [(" ".join(row[1:]),) for row in spelled]
        return [(" ".join(row[1 : self.cut]), " ".join(row[self.cut + 1 :])) for row in spelled]

    def draw(
        self, count: int, random: torch.Generator, *, shifted: bool = False
    ) -> tuple[Tensor, list[float]]:
        """Draws examples in random order.

        Args:
            count: Number of examples.
            random: Source of the draws.
            shifted: Whether the words are drawn from the mismatched distribution.

        Returns:
            Tokens, int64 `[count, process.length]`, and the class numbers (or scores).
        """
        pairs, random_order = len(self.pairs), torch.randperm(count, generator=random)
        kinds = pairs + 1 if self.row.regression else self.row.classes
        kind = random_order % kinds
        some = torch.randint(1, pairs + 1, (count,), generator=random)
        broken = {
            "acceptability": 1 - kind,
            "paraphrase": (1 - kind) * some,
            "entailment": kind.clamp(max=1),
            "similarity": pairs - kind,
        }[self.name]
        rank = torch.rand(count, pairs, generator=random).argsort(1).argsort(1)
        step = self.steps(kind, random)
        tokens = words(self.process, count, random, shifted=shifted)
        second = torch.tensor(self.pairs)[:, 1]
        label = self.process.labels[tokens[:, second]] + step
        other = self.process.labels.argsort()[label % self.process.vocabulary]
        tokens[:, second] = torch.where(rank < broken[:, None], other, tokens[:, second])
        if self.row.regression:
            return tokens, [5 * number / pairs for number in kind.tolist()]
        return tokens, kind.tolist()

    def steps(self, kind: Tensor, random: torch.Generator) -> Tensor:
        """How far a broken pair's second word is relabelled, never by 0: int64 `[count, pairs]`.

        Args:
            kind: Class numbers `[count]`.
            random: Source of the draws.
        """
        size, opposite = self.process.vocabulary, self.process.vocabulary // 2
        shape = (len(kind), len(self.pairs))
        if self.name != "entailment":
            return torch.randint(1, size, shape, generator=random)
        neither = torch.randint(1, size - 1, shape, generator=random)
        neither += neither >= opposite
        return torch.where(kind[:, None] == 2, opposite, neither)


def across(process: PlantedProcess, cut: int) -> Groups:
    """The pairs with one word before position `cut` and one after it."""
    return tuple(pair for pair in process.pairs if pair[0] < cut < pair[-1])


def words(
    process: PlantedProcess, count: int, random: torch.Generator, *, shifted: bool = False
) -> Tensor:
    """Sequences of the process: int64 `[count, length]`; `shifted` as in the mismatched set."""
    if not shifted:
        return process.sample(count, random)
    weight = 1 / torch.arange(1, process.vocabulary + 1, dtype=torch.float64)
    drawn = torch.multinomial(weight, count * process.length, True, generator=random)
    return process.completed(drawn.view(count, process.length))
