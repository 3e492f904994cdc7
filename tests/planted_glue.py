"""Text and GLUE folders whose dependencies are planted, so that the right mask is known.

corpus = PlantedGlue()
corpus.write(Path("planted"))
GlueEvaluator("planted/text", "planted", tasks=(PLANTED["paraphrase"],), ..)
corpus.oracle()                                  # the mask that shows every planted pair
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import masksearch as ms
from masksearch.contracts import generator
from masksearch.tasks.glue.tasks import TASKS
from masksearch.tasks.planted.process import PlantedProcess

TEXT, ROWS = 31, 32  # streams of random numbers
HEADERS = {  # in the shape of official tasks: CoLA, MRPC, MNLI, STS-B (some columns left out)
    "acceptability": "",
    "paraphrase": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
    "entailment": "index\tgenre\tsentence1\tsentence2\tgold_label\n",
    "similarity": "index\tgenre\tsentence1\tsentence2\tscore\n",
}
PLANTED = {
    name: replace(TASKS[shape], name=name, seed_number=number, hub=None, dev={})
    for number, (name, shape) in enumerate(
        zip(HEADERS, ("CoLA", "MRPC", "MNLI", "STS-B"), strict=True), start=9
    )
}
PLANTED["entailment"] = replace(
    PLANTED["entailment"],
    dev={"entailment": ("dev_matched.tsv",), "entailment-mm": ("dev_mismatched.tsv",)},
)


def default_process() -> PlantedProcess:
    """17 words, the pairs (1, 10), (2, 11), .., (8, 17)."""
    return PlantedProcess(length=18, vocabulary=32, offsets=(9,), keys=1)


@dataclass(frozen=True)
class PlantedGlue:
    """Writes text to pre-train on and four GLUE-shaped tasks over the same planted pairs.

    A sequence is `[CLS] w w .. w [SEP]`: the word at position p >= 1 is token p of the process.
    Where a task has two sentences, the word at position `cut` gives way to [SEP], and every other
    word stays where it was in pre-training. All words are uniform, alone and in any set that
    holds no whole pair, so nobody beats the majority who cannot compare the words of a pair.

    - acceptability (CoLA): 1 = a sequence of the process, 0 = in one random pair the second word
      is replaced by another one.
    - paraphrase (MRPC): 1 = every pair across the cut holds; 0 = one to all of them are broken.
    - entailment (MNLI): 0 = every pair holds; in one random pair the second word is replaced by
      its opposite (2 = contradiction) or by a word that is neither (1 = neutral). The opposite
      of a word with relabelling r is the word with r + vocabulary // 2.
    - similarity (STS-B): 5 m / c, where m of the c pairs hold; each m in 0 .. c as often.

    The labels are balanced to within one row, and every metric's ceiling is 1.
    """

    process: PlantedProcess = field(default_factory=default_process)
    lines: int = 20_000
    valid_lines: int = 1_000
    rows: int = 4_320  # of each task; divisible by 2, 3 and 9: balanced for the default process
    dev_rows: int = 1_080
    seed: int = 0

    @property
    def length(self) -> int:
        """Positions of a sequence, with [CLS] and [SEP]: the evaluator's length."""
        return self.process.length + 1

    @cached_property
    def cut(self) -> int:
        """Position of the [SEP] between two sentences: the one that most pairs lie across."""
        length = self.process.length
        return min(
            range(2, length - 1), key=lambda at: (-len(self.across(at)), abs(2 * at - length))
        )

    def across(self, cut: int) -> list[tuple[int, ...]]:
        """The pairs with one word before position `cut` and one after it."""
        return [pair for pair in self.process.pairs if pair[0] < cut < pair[-1]]

    def pairs(self, name: str) -> Tensor:
        """The pairs of positions that a task's label depends on: int64 `[pairs, 2]`."""
        single = len(PLANTED[name].texts) == 1
        return torch.tensor(self.process.pairs if single else self.across(self.cut))

    def oracle(self) -> ms.Mask:
        """Both directions of every pair, and the diagonal so that no row is empty."""
        kept = torch.eye(self.length, dtype=torch.bool)
        first, second = self.pairs("acceptability").T
        kept[first, second] = kept[second, first] = True
        return ms.masks.table(kept)

    def texts(self, name: str, tokens: Tensor) -> list[tuple[str, ...]]:
        """Sequences as one or two sentences of words."""
        spelled = [[f"w{token:02d}" for token in row] for row in tokens.tolist()]
        if len(PLANTED[name].texts) == 1:
            return [(" ".join(row[1:]),) for row in spelled]
        return [(" ".join(row[1 : self.cut]), " ".join(row[self.cut + 1 :])) for row in spelled]

    def draw(self, name: str, count: int, random: torch.Generator) -> tuple[Tensor, list[float]]:
        """Tokens of examples in random order, int64 `[count, process.length]`, and their class
        numbers (or scores)."""
        size, opposite = self.process.vocabulary, self.process.vocabulary // 2
        pairs, row = len(self.pairs(name)), PLANTED[name]
        kind = torch.randperm(count, generator=random) % (row.classes or pairs + 1)
        some = torch.randint(1, pairs + 1, (count,), generator=random)
        broken = {
            "acceptability": 1 - kind,
            "paraphrase": (1 - kind) * some,
            "entailment": kind.clamp(max=1),
            "similarity": pairs - kind,
        }[name]
        rank = torch.rand(count, pairs, generator=random).argsort(1).argsort(1)
        entailment = name == "entailment"
        step = torch.randint(1, size - entailment, (count, pairs), generator=random)
        if entailment:
            step = torch.where(kind[:, None] == 2, opposite, step + (step >= opposite))
        tokens = self.process.sample(count, random)
        second = self.pairs(name)[:, 1]
        label = self.process.labels[tokens[:, second]] + step
        other = self.process.labels.argsort()[label % size]
        tokens[:, second] = torch.where(rank < broken[:, None], other, tokens[:, second])
        scores = [5 * number / pairs for number in kind.tolist()]
        return tokens, scores if row.regression else kind.tolist()

    def write(self, folder: Path) -> Path:
        """Writes `text/train.txt`, `text/valid.txt` and a folder for each task; the folder is then
        the GLUE folder, and `folder/text` the corpus, of a `GlueEvaluator`."""
        for part, (name, count) in enumerate((("train", self.lines), ("valid", self.valid_lines))):
            tokens = self.process.sample(count, generator(self.seed, TEXT, part))
            lines = (f"{line}\n" for (line,) in self.texts("acceptability", tokens))
            write_lines(folder / "text" / f"{name}.txt", lines)
        for number, (name, task) in enumerate(PLANTED.items()):
            files = [file for names in task.dev_files.values() for file in names]
            for part, file in enumerate(["train.tsv", *files]):
                random = generator(self.seed, ROWS, number, part)
                tokens, labels = self.draw(name, self.dev_rows if part else self.rows, random)
                rows = zip(self.texts(name, tokens), labels, strict=True)
                lines = (
                    tsv_line(name, n, "\t".join(t), label) for n, (t, label) in enumerate(rows)
                )
                write_lines(folder / name / file, [HEADERS[name], *lines])
        return folder


def tsv_line(name: str, number: int, texts: str, label: float) -> str:
    """A line in the columns of the official task."""
    if name == "acceptability":
        return f"planted\t{label}\t{'' if label else '*'}\t{texts}\n"
    if name == "paraphrase":
        return f"{label}\t{2 * number}\t{2 * number + 1}\t{texts}\n"
    spelled = TASKS["MNLI"].labels[int(label)] if name == "entailment" else f"{label:.3f}"
    return f"{number}\tplanted\t{texts}\t{spelled}\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes lines that end in LF, on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(lines).encode())
