"""Text and GLUE folders whose dependencies are planted, so that the right mask is known.

corpus = PlantedGlue()
corpus.write(Path("planted"))
GlueEvaluator("planted/text", "planted", tasks=("acceptability",), length=corpus.length, ..)
corpus.oracle()                                  # the mask that shows every planted pair
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from masksearch import masks
from masksearch.contracts import generator
from masksearch.masks.core import Mask
from masksearch.tasks.glue.tasks import NLI, PLANTED
from masksearch.tasks.planted.glue_tasks import PlantedGlueTask
from masksearch.tasks.planted.process import PlantedProcess

TEXT, ROWS = 31, 32  # streams of random numbers
PIECE = 4096  # lines of text drawn at once
MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
HEADERS = {
    "acceptability": "",
    "paraphrase": MRPC_HEADER,
    "entailment": "index\tgenre\tsentence1\tsentence2\tgold_label",
    "similarity": "index\tgenre\tsentence1\tsentence2\tscore",
}


def eight_pairs() -> PlantedProcess:
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

    Raises:
        ValueError: If a number is below 1 or the process does not fit.
    """

    process: PlantedProcess = field(default_factory=eight_pairs)
    lines: int = 20_000
    valid_lines: int = 1_000
    rows: int = 4_320  # divisible by 2, 3 and 9: balanced for the default process
    dev_rows: int = 1_080
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lines", "valid_lines", "rows", "dev_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        _ = self.tasks  # made once, so that a process that does not fit is refused here

    @property
    def length(self) -> int:
        """Positions of a sequence, with [CLS] and [SEP]: the evaluator's length."""
        return self.process.length + 1

    @cached_property
    def tasks(self) -> Mapping[str, PlantedGlueTask]:
        """The four tasks by name."""
        return {name: PlantedGlueTask(name, self.process) for name in PLANTED}

    def oracle(self, length: int | None = None) -> Mask:
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
            saved(folder / "text" / name, self.text(count, generator(self.seed, TEXT, part)))
        for number, (name, task) in enumerate(self.tasks.items()):
            files = [file for names in task.row.dev_files.values() for file in names]
            for part, file in enumerate(["train.tsv", *files]):
                count = self.rows if part == 0 else self.dev_rows
                random = generator(self.seed, ROWS, number, part)
                lines = tsv(task, count, random, shifted=part == 2)
                saved(folder / name / file, lines)
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
    line: Callable[..., str] = LINES[task.name]
    if HEADERS[task.name]:
        yield HEADERS[task.name]
    genre = "shifted" if shifted else "planted"
    for number, (texts, label) in enumerate(zip(task.texts(tokens), labels, strict=True)):
        yield line(number, genre, "\t".join(texts), label)


def acceptability_line(number: int, genre: str, text: str, label: int) -> str:
    """A line of CoLA: source, label, the author's mark, sentence."""
    return f"{genre}\t{label}\t{'' if label else '*'}\t{text}"


def paraphrase_line(number: int, genre: str, texts: str, label: int) -> str:
    """A line of MRPC: label, two ids, two sentences."""
    return f"{label}\t{2 * number}\t{2 * number + 1}\t{texts}"


def entailment_line(number: int, genre: str, texts: str, label: int) -> str:
    """A line of MNLI, some columns left out: the label is a word."""
    return f"{number}\t{genre}\t{texts}\t{NLI[label]}"


def similarity_line(number: int, genre: str, texts: str, label: float) -> str:
    """A line of STS-B, some columns left out: a score with three digits."""
    return f"{number}\t{genre}\t{texts}\t{label:.3f}"


LINES = {
    "acceptability": acceptability_line,
    "paraphrase": paraphrase_line,
    "entailment": entailment_line,
    "similarity": similarity_line,
}


def saved(path: Path, lines: Iterator[str]) -> None:
    """Writes lines that end in LF, on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
