"""Text and GLUE folders whose dependencies are planted, so that the right mask is known.

corpus = PlantedGlue()
corpus.write(Path("planted"))
GlueEvaluator("planted/text", "planted", tasks=(PLANTED["paraphrase"],), ..)
corpus.oracle()                                  # the mask that shows every planted pair
corpus.tasks["paraphrase"].draw(64, generator(0))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import masksearch as ms
from masksearch import masks
from masksearch.contracts import generator
from masksearch.tasks.glue import NLI, TASKS, GlueTask
from masksearch.tasks.planted import PlantedProcess

TEXT, ROWS = 31, 32  # streams of random numbers
PIECE = 4096  # lines of text drawn at once
Groups = tuple[tuple[int, ...], ...]
PLANTED = {  # in the shape of official tasks
    "acceptability": replace(TASKS["CoLA"], name="acceptability", seed_number=9, hub=None),
    "paraphrase": replace(TASKS["MRPC"], name="paraphrase", seed_number=10, hub=None),
    "entailment": replace(
        TASKS["MNLI"],
        name="entailment",
        dev={"entailment": ("dev_matched.tsv",), "entailment-mm": ("dev_mismatched.tsv",)},
        seed_number=11,
        hub=None,
    ),
    "similarity": replace(TASKS["STS-B"], name="similarity", seed_number=12, hub=None),
}
HEADERS = {
    "acceptability": "",
    "paraphrase": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "entailment": "index\tgenre\tsentence1\tsentence2\tgold_label",
    "similarity": "index\tgenre\tsentence1\tsentence2\tscore",
}


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
        process: The distribution; one key, one parent, a vocabulary of at least 3 words, and a
            pair that can lie across two sentences.
    """

    name: str
    process: PlantedProcess

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
        length = self.process.length
        return min(
            range(2, length - 1),
            key=lambda at: (-len(pairs_across(self.process, at)), abs(2 * at - length)),
            default=0,
        )

    @cached_property
    def pairs(self) -> Groups:
        """The pairs of positions that the label depends on."""
        if self.row.kind == "single":
            return self.process.pairs
        return pairs_across(self.process, self.cut)

    def oracle(self, length: int | None = None) -> ms.Mask:
        """The mask that shows every pair and nothing else: both directions of `pairs`, and the
        diagonal so that no row is empty. Pre-training needs both directions, a label one of them.

        Args:
            length: Positions of the mask; default and least value `self.length`. At more, the
                further positions hold padding. Pre-training packs text without padding, so only
                at `self.length` is one packed sequence one line of the text.

        Returns:
            A table, bool `[length, length]`.
        """
        length = self.length if length is None else length
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
        tokens = draw_words(self.process, count, random, shifted=shifted)
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


def pairs_across(process: PlantedProcess, cut: int) -> Groups:
    """The pairs with one word before position `cut` and one after it."""
    return tuple(pair for pair in process.pairs if pair[0] < cut < pair[-1])


def draw_words(
    process: PlantedProcess, count: int, random: torch.Generator, *, shifted: bool = False
) -> Tensor:
    """Sequences of the process: int64 `[count, length]`; `shifted` as in the mismatched set."""
    if not shifted:
        return process.sample(count, random)
    weight = 1 / torch.arange(1, process.vocabulary + 1, dtype=torch.float64)
    drawn = torch.multinomial(weight, count * process.length, True, generator=random)
    return process.complete_pairs(drawn.view(count, process.length))


def default_process() -> PlantedProcess:
    """The default process: 17 words, the pairs (1, 10), (2, 11), .., (8, 17)."""
    return PlantedProcess(length=18, vocabulary=32, offsets=(9,), keys=1)


@dataclass(frozen=True)
class PlantedGlue:
    """Writes text to pre-train on and four GLUE-shaped tasks over the same planted pairs.

    The files go the way of real data: text file, tokenizer, pre-training, TSV, fine-tuning,
    official metrics. The words are "w00", "w01", .., one WordPiece token each. The tasks and
    their ceilings are described by `PlantedGlueTask`. Every file is a function of the fields.

    At an evaluator length of `length`, each packed pre-training sequence is one line, and a pair
    of words has the same positions in pre-training and in all four tasks.

    Args:
        process: The distribution; one key, one parent, at least 3 words.
        lines: Lines of training text.
        valid_lines: Lines of held-out text.
        rows: Training rows of each task.
        dev_rows: Rows of each development set.
        seed: Seed of every draw.
    """

    process: PlantedProcess = field(default_factory=default_process)
    lines: int = 20_000
    valid_lines: int = 1_000
    rows: int = 4_320  # divisible by 2, 3 and 9: balanced for the default process
    dev_rows: int = 1_080
    seed: int = 0

    @property
    def length(self) -> int:
        """Positions of a sequence, with [CLS] and [SEP]: the evaluator's length."""
        return self.process.length + 1

    @cached_property
    def tasks(self) -> Mapping[str, PlantedGlueTask]:
        """The four tasks by name."""
        return {name: PlantedGlueTask(name, self.process) for name in PLANTED}

    def oracle(self, length: int | None = None) -> ms.Mask:
        """The union of the tasks' oracles, which is also what pre-training needs.

        Args:
            length: See `PlantedGlueTask.oracle`.
        """
        length = self.length if length is None else length
        kept = [task.oracle(length).dense(length)[0, 0] for task in self.tasks.values()]
        return masks.table(torch.stack(kept).any(0))

    def write(self, folder: Path | str) -> Path:
        """Writes `text/train.txt`, `text/valid.txt` and a folder for each task.

        Args:
            folder: Where to write; made where it is missing, its files are replaced. It is then
                the GLUE folder, and `folder/text` the corpus, of a `GlueEvaluator`.

        Returns:
            The folder.
        """
        folder = Path(folder)
        for part, (name, count) in enumerate(
            (("train.txt", self.lines), ("valid.txt", self.valid_lines))
        ):
            write_lines(folder / "text" / name, self.text(count, generator(self.seed, TEXT, part)))
        for number, (name, task) in enumerate(self.tasks.items()):
            files = [file for names in task.row.dev_files.values() for file in names]
            for part, file in enumerate(["train.tsv", *files]):
                count = self.rows if part == 0 else self.dev_rows
                random = generator(self.seed, ROWS, number, part)
                lines = tsv(task, count, random, shifted=part == 2)
                write_lines(folder / name / file, lines)
        return folder

    def text(self, count: int, random: torch.Generator) -> Iterator[str]:
        """Lines of text, one sequence each."""
        spell = self.tasks["acceptability"].texts
        for start in range(0, count, PIECE):
            tokens = self.process.sample(min(PIECE, count - start), random)
            yield from (line for (line,) in spell(tokens))


def tsv(
    task: PlantedGlueTask, count: int, random: torch.Generator, *, shifted: bool
) -> Iterator[str]:
    """Lines of a task's TSV file, its header first where it has one."""
    tokens, labels = task.draw(count, random, shifted=shifted)
    genre = "shifted" if shifted else "planted"
    if HEADERS[task.name]:
        yield HEADERS[task.name]
    for number, (texts, label) in enumerate(zip(task.texts(tokens), labels, strict=True)):
        yield tsv_line(task.name, number, genre, "\t".join(texts), label)


def tsv_line(name: str, number: int, genre: str, texts: str, label: float) -> str:
    """A line in the columns of CoLA, MRPC, MNLI or STS-B (of the last two some are left out)."""
    if name == "acceptability":
        return f"{genre}\t{label}\t{'' if label else '*'}\t{texts}"
    if name == "paraphrase":
        return f"{label}\t{2 * number}\t{2 * number + 1}\t{texts}"
    if name == "entailment":
        return f"{number}\t{genre}\t{texts}\t{NLI[int(label)]}"
    return f"{number}\t{genre}\t{texts}\t{label:.3f}"


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Writes lines that end in LF, on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
