"""Judges a mask by how far an embedding model under it still ranks texts as the dense model does.

evaluator = EmbeddingEvaluator("sentences.txt", "my-embedder")
(report,) = evaluator(masks.star(), seed=0, workdir=Path("run"))
print(report.values["spearman"], report.values["random_pairs"])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from masksearch import masks
from masksearch.analysis.row_scores import RowScores, lower_bound
from masksearch.attention.attach import attach
from masksearch.attention.live import FIRST_ROW
from masksearch.contracts import (
    LOW,
    MAJORITY,
    Differentiable,
    Evaluator,
    Objective,
    Report,
    Shape,
    generator,
)
from masksearch.errors import DataError
from masksearch.evaluators.answers import find_tables, task_of_texts
from masksearch.evaluators.assembled import TOKENIZERS, RowsBase, read_weights
from masksearch.evaluators.tuning import TaskTraining, pooled_lengths, train_together
from masksearch.files import content_hash, read_once, short_hash
from masksearch.masks.core import Mask
from masksearch.masks.lower import lower
from masksearch.models.checkpoints import check_positions, find_folder
from masksearch.models.embedding import Embedder, holds_embedding, open_embedding
from masksearch.models.pretrained import Pretrained
from masksearch.tasks.glue.read import read_cells
from masksearch.tasks.splits import in_holdout, sample_rows, take_split
from masksearch.tasks.text.files import absolute_if_local, make_absolute, read_lines, text_files
from masksearch.tasks.text.rows import CheckpointTokenizer, TokenRows, sample_tokens, tokenize_rows
from masksearch.training.parts import MachineConfig, at_least, refuse_missing

DRAWN = 41  # stream of random numbers
RANKS = 20  # a text itself is rank 1; those of ranks 2 to 20 are near it
SCORE, RANDOM = "spearman", "random_pairs"


@dataclass(frozen=True)
class EmbeddingEvaluator(MachineConfig, RowsBase, Evaluator):
    """Puts a mask on an embedding model, a folder of sentence-transformers, as it is.

    The score, `"spearman"`, is Spearman's correlation of the masked model's cosines with the
    dense model's, within the near texts of each query text (ranks 2 to 20 by the dense model,
    among the query texts), a mean over query texts. Gates do not read these. The correlation of
    random pairs, `"random_pairs"`, stands beside it. No weight is trained: gates learn the mean of
    1 - cosine to the dense embedding.

    Args:
        texts: A text file with a text a line, or a folder of *.txt files, or a table (.tsv, .csv
            or .jsonl): half of their texts are query texts, by a hash of each. Or a folder of the
            tables train, dev and, where there is one, test (.tsv or .csv): query texts are those
            of dev and test. Texts are read as they stand, equal ones count once, blank ones not.
        weights: The folder of the model, with modules.json, or its name on the Hugging Face Hub.
        columns: Of tables, those that hold texts; each cell is a text by itself.
        length: Tokens of a text, at most; the rest is cut.
        rows: Largest number of texts that gates read; a fixed sample; None = all.
        dev_rows: The same for the query texts of a split.
        gates_batch: Texts of a batch for gates.

    Raises:
        DataError: When it is called, or asked for its protocol, and texts or model cannot be read
            or do not fit.
    """

    texts: Path | str = ""
    weights: Path | str = ""
    _: KW_ONLY
    columns: Sequence[str] = ()
    length: int = at_least(8, 128)
    rows: int | None = at_least(1, 10_000)
    dev_rows: int | None = at_least(RANKS + 1, 2_000)
    gates_batch: int = at_least(1, 32)

    seedless = weights_frozen = keeps_answers = True
    recover_steps = 0  # as of evaluators that train under a mask

    def __post_init__(self) -> None:
        refuse_missing(self, "texts")
        refuse_missing(self, "weights")
        super().__post_init__()
        make_absolute(self, "texts")  # workers may run in another folder
        make_absolute(self, "weights", resolve=absolute_if_local)
        object.__setattr__(self, "columns", tuple(self.columns))

    @property
    def data(self) -> EmbeddingData:
        """The model's checkpoint and the texts, read once a process."""
        files = self.states(self.texts) + self.states(self.weights, pattern=f"**/{TOKENIZERS}")
        return cast(EmbeddingData, self.held.get("data") or read_once(files, _read_data, self))

    def packed(self) -> Self:
        """The same evaluator with its texts in memory, for machines that do not see its files."""
        return self if self.held else self.holding(data=self.data)

    @property
    def trainer(self) -> TaskTraining:
        """The maker of batches, which has a model embed rows."""
        return TaskTraining(TokenRows.batch, self.gates_batch, None, self, self.torch_device)

    @property
    def shape(self) -> Shape:
        """The sizes of a mask, with the lengths of the texts that gates read; where [CLS] is the
        embedding, that row of the last layer is all that is read."""
        start, train, length = self.data.start, self.data.train, self.length
        lengths, tokens = pooled_lengths([train.lengths], length), sample_tokens([train], length)
        return replace(start.shape(length), lengths=lengths, read=self.data.read, tokens=tokens)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The score, whose losses are none of them small, and the mask's sparsity over pairs of
        tokens."""
        return Objective(SCORE, "max", 0.0), Objective("effective_sparsity", "max", 0.0)

    @property
    def protocol(self) -> str:
        """Hash of the texts, the model and the settings; reads the data."""
        settings = f"{self.length} {self.precision} {self.split}"
        return short_hash("embedding-1", *self.data_hashes().values(), settings)

    @property
    def downstream(self) -> tuple[str, ...]:
        """The name of the texts, as other evaluators have those of their tasks."""
        return (Path(self.texts).name,)

    def data_hashes(self) -> dict[str, str]:
        """Hashes of the texts' rows, and of the model with all that is configured of it."""
        return {"texts": self.data.texts, "weights": self.data.weights}

    def model(self) -> nn.Module:
        """The dense model."""
        whole = open_embedding(self.data.start.locate(), dtype=torch.float32)
        return Embedder(whole).to(self.torch_device).eval()

    def adapted(self, mask: Mask, *, seed: int = 0, drop_tokens: bool | int = False) -> Any:
        """The SentenceTransformer on the CPU with the mask attached; no seed changes it."""
        return self.under(mask, open_embedding(self.data.start.locate()), drop_tokens)

    def under(self, mask: Mask, model: nn.Module, drop_tokens: bool | int = False) -> nn.Module:
        """A model with the mask attached: its table, unless it follows the tokens."""
        table = mask if mask.needs_tokens else masks.table(lower(mask, self.shape))
        return attach(model, masks.cropped(table, self.length), drop_tokens=drop_tokens)

    def embed(self, model: nn.Module) -> Tensor:
        """The embeddings of the query texts, of length 1: float64 `[texts, width]`."""
        return F.normalize(torch.stack(self.trainer.predict(model, self.data.queries)).double())

    def differentiable(self, seed: int) -> Differentiable:
        """The dense model with frozen weights; gates learn its own embeddings."""
        made = train_together(
            [self.model()], [(self.data.train, seed)], self.trainer, imitate=True
        )
        made.model.requires_grad_(False)
        return made

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields one report: `"spearman"`, what a constant answer earns and the lower end of the
        95% interval over query texts, and `"random_pairs"`."""
        pairs, dense = compare_dense(self, self.protocol)
        found = cosines(self.embed(self.under(mask, self.model())), pairs)
        scores = correlate(found[:, :-1], dense[:, :-1])
        RowScores({SCORE: scores}, {SCORE: 1.0}, {SCORE: self.data.texts}).save(workdir)
        values = {SCORE: float(scores.mean()), SCORE + MAJORITY: 0.0}
        random = float(correlate(found[:, -1:].T, dense[:, -1:].T)[0])
        yield Report(0, values | {SCORE + LOW: lower_bound(scores, -1.0), RANDOM: random})


def embeds_texts(model: str | Path, task: Any) -> bool:
    """Whether a task is texts without labels, `Columns` or None, and an embedding model's."""
    return getattr(task, "label", task) is None and holds_embedding(find_folder(model)[1])


# -- pairs of texts ------------------------------------------------------------------------------
@lru_cache(maxsize=4)
def compare_dense(evaluator: EmbeddingEvaluator, protocol: str) -> tuple[Tensor, Tensor]:
    """Numbers of 20 texts for each query text, 19 near ones by the dense model and last a random
    one, and their cosines by the dense model; made once a process for each protocol."""
    dense = evaluator.embed(evaluator.model())
    near = [(part @ dense.T).topk(RANKS).indices[:, 1:] for part in torch.split(dense, 1024)]
    order = torch.randperm(len(dense), generator=generator(DRAWN))
    random = order[(order.argsort() + 1) % len(dense)]  # the next text in that order
    pairs = torch.cat([torch.cat(near), random[:, None]], 1)
    return pairs, cosines(dense, pairs)


def cosines(embedded: Tensor, pairs: Tensor) -> Tensor:
    """The cosines of each text to its others, of embeddings of length 1: `[texts, others]`."""
    return torch.einsum("td,tod->to", embedded, embedded[pairs])


def correlate(one: Tensor, two: Tensor) -> NDArray[np.float64]:
    """Spearman's correlation of each row with that of another; 0 where a row is constant."""
    from scipy.stats import rankdata

    first, second = (torch.from_numpy(rankdata(each, axis=1)) for each in (one, two))
    centred = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return F.cosine_similarity(*centred).numpy()


# -- texts ---------------------------------------------------------------------------------------
class EmbeddingData(NamedTuple):
    """A model's checkpoint, the texts that gates read, the query texts of a split, the leading
    rows of the last layer that reach an embedding (None = all), and hashes."""

    start: Pretrained
    train: TokenRows
    queries: TokenRows
    read: int | None
    texts: str
    weights: str


def _read_data(evaluator: EmbeddingEvaluator) -> EmbeddingData:
    """The checkpoint and the texts of an evaluator."""
    place, split, start = evaluator.texts, evaluator.split, read_weights(evaluator.weights)
    whole = open_embedding(folder := start.locate())
    longest = min(start.positions, whole.max_seq_length or start.positions)
    check_positions(start.name, longest, evaluator.length)
    parts = find_texts(Path(place), tuple(evaluator.columns))
    asked = parts.get("test" if split == "test" else "dev", [])
    asked = take_split(asked, split, f"the query texts of {place}", str)
    if len(asked) <= RANKS:
        raise DataError(
            f"{place} has {len(asked)} query texts of split={split!r}, and ranks 2 to {RANKS} "
            f"need {RANKS + 1}; give more texts, or judge by both splits: split='all' "
            "(--set split=all)"
        )
    source = CheckpointTokenizer(start.name, whole.tokenizer, evaluator.length, None)
    prompt = whole.prompts.get(whole.default_prompt_name) or ""
    limits = (parts["train"], evaluator.rows), (asked, evaluator.dev_rows)
    drawn = [sample_rows(texts, most, 0, DRAWN) for texts, most in limits]
    rows = [[(prompt + text,) for text in texts] for texts in drawn]
    train, queries = (tokenize_rows(source, each, [0] * len(each)) for each in rows)
    read = 1 if whole[1].pooling_mode == "cls" and start.architecture in FIRST_ROW else None
    hashes = short_hash(*map(evaluator.trainer.hash_rows, (train, queries)))
    settings = content_hash(sorted(folder.rglob("*.json")))
    return EmbeddingData(start, train, queries, read, hashes, start.digest + settings[:16])


def find_texts(place: Path, columns: tuple[str, ...]) -> dict[str, list[str]]:
    """Part ("train", "dev" and, where there is one, "test") -> its texts as they stand, each
    once, none blank; "train" has none of the others."""
    if columns:
        task = task_of_texts(place.name, columns)
        files = find_tables(place, task) if place.is_dir() else {"train": place}
        tables = {part: read_cells(path, task, columns).values() for part, path in files.items()}
        parts = {part: [text for row in rows for text in row] for part, rows in tables.items()}
    else:
        lines = (line for file in text_files(place) for line, _ in read_lines(file))
        parts = {"train": [line.removesuffix("\n").removesuffix("\r") for line in lines]}
    parts = {part: [*dict.fromkeys(filter(str.strip, texts))] for part, texts in parts.items()}
    asked = parts.setdefault("dev", [t for t in parts["train"] if in_holdout(f"asked: {t}")])
    others = {*asked, *parts.get("test", ())}
    return parts | {"train": [text for text in parts["train"] if text not in others]}
