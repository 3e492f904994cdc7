"""Ways to make a fine-tuned encoder faster: the plain ones that an engineer tries first, and masks
under which tokens are left out. Each is timed beside the dense model, and scored."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from masksearch.attention.attach import attach, detach
from masksearch.contracts import Batch
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.evaluators.tuning import TaskScores, rescale
from masksearch.files import short_hash, write_text_in_one_move
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Full
from masksearch.models.speed import time_variants
from masksearch.study.records import machine_name
from masksearch.tasks.text.rows import TokenRows

LEAST, MOST, TOKENS = 2, 8, 2**14  # batches that are timed, while they have no more tokens
REPEATS = 4  # passes through all batches
SETS = 24  # of layers to leave out that are scored, at most


@dataclass(frozen=True)
class Way:
    """A change of the dense model, or of the rows that it is given.

    Args:
        layers: Those that stay, from 0; None = all.
        cut: Most tokens of a row; None = as many as it has.
        ends: Whether of a text that is cut its end stays beside its beginning.
        dtype: Of the weights; None = as it is asked for.
        by_length: Whether rows are sorted by length.
        mask: What is put on the model; None = nothing.
        read: Leading rows that the head reads: tokens that nobody needs are left out.
    """

    layers: tuple[int, ...] | None = None
    cut: int | None = None
    ends: bool = False
    dtype: torch.dtype | None = None
    by_length: bool = False
    mask: Mask | None = None
    read: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it takes no search."""
        return self.mask in (None, Full())

    @property
    def line(self) -> str:
        """The line of Python that does it to a model of transformers, or to its inputs."""
        if not self.plain:
            return "ms.attach(model, mask, drop_tokens=True)"
        lines = []
        if self.layers is not None:
            lines = [f"encoder.layer = nn.ModuleList(encoder.layer[at] for at in {self.layers})"]
        if self.cut is not None and self.ends:
            head, tail = self.cut - self.cut // 2, self.cut // 2
            cut = f"ids[:{head}] + ids[-{tail}:] if len(ids) > {self.cut} else ids"
            lines.append(f"ids = {cut}")
        elif self.cut is not None:
            lines.append(f"tokenizer(texts, truncation=True, max_length={self.cut})")
        if self.by_length:
            lines.append("texts.sort(key=lambda text: len(tokenizer(text).input_ids))")
        if self.dtype is not None:
            lines.append(f"model.to({self.dtype})")
        if self.read:
            lines.append("ms.attach(model, ms.masks.full(), drop_tokens=True)")
        return "; ".join(lines)

    def on(self, model: Any) -> Any:
        """The model, a copy that may share weights, with the change in force."""
        if self.dtype is not None:
            model = copy.deepcopy(model).to(self.dtype)
        if self.layers is not None:
            config, stack = model.encoder.config, layers_of(model)
            for at in reversed(sorted({*range(len(stack))} - {*self.layers})):
                del stack[at]
            config.num_hidden_layers = len(stack)
            if isinstance(kinds := getattr(config, "layer_types", None), list):
                config.layer_types = [kinds[at] for at in self.layers]
        if self.mask is not None:
            attach(getattr(model, "whole", model), self.mask, drop_tokens=self.read or False)
        return model.eval()

    def rows(self, rows: TokenRows) -> TokenRows:
        """The rows that the model is given."""
        if self.cut is None:
            return rows
        made = [_cut(rows, at, self.cut, self.ends) for at in range(len(rows))]
        return TokenRows.of(made, rows.labels.tolist(), rows.layout)

    def batches(self, rows: TokenRows, size: int) -> Iterator[Batch]:
        """The inputs of the rows, so many at once, padded to the longest of them."""
        rows, order = self.rows(rows), [*range(len(rows))]
        if self.by_length:
            order.sort(key=rows.lengths.__getitem__)
        for at in range(0, len(order), size):
            batch = rows.batch(order[at : at + size])
            width = int(batch["attention_mask"].sum(1).max())
            yield {n: part[:, :width] for n, part in batch.items() if n != "labels"}


def layers_of(model: Any) -> nn.ModuleList:
    """The encoder's list of layers; empty where they share weights."""
    lists = [each for each in model.encoder.modules() if isinstance(each, nn.ModuleList)]
    count = model.encoder.config.num_hidden_layers
    return next((each for each in lists if len(each) == count), nn.ModuleList())


def layer_sets(layers: int, fewer: int) -> list[tuple[int, ...]]:
    """Sets of the layers that stay, at most 24; those that lack neighbours come first.

    >>> layer_sets(4, 2)[:4]
    [(2, 3), (0, 3), (0, 1), (1, 3)]
    """
    out = sorted(combinations(range(layers), fewer), key=lambda each: (each[-1] - each[0], each))
    return [tuple(at for at in range(layers) if at not in each) for each in out[:SETS]]


def _cut(rows: TokenRows, at: int, most: int, ends: bool) -> tuple[list[int], int]:
    """The ids of a row of at most so many tokens, and how many have type 0: of two texts the
    longer one is cut first, as tokenizers do; `ends` stay beside the beginnings, or do not."""
    ids, layout = [int(each) for each in rows.ids[at]], rows.layout
    if len(ids) <= most:
        return ids, int(rows.firsts[at])
    one, two = ids[len(layout.before) : len(ids) - len(layout.after)], list[int]()
    joint, size = [*layout.between], len(layout.between)
    for start in range(len(one) - size):
        if one[start : start + size] == joint:
            one, two = one[:start], one[start + size :]
            break
    spare = replace(layout, length=most).room(pair=bool(two))
    half = spare // 2 + spare % 2 * (len(one) > len(two))
    first = min(len(one), max(spare - len(two), half))
    texts = []
    for text, count in ((one, first), (two, spare - first)):
        last = count // 2 if ends else 0
        texts.append(text[: count - last] + text[len(text) - last :])
    return layout.join(texts[0], texts[1] if two else None)


class Row(NamedTuple):
    """A way in the table."""

    way: Way
    times: list[float]  # as fast as dense: lower quartile, median, upper quartile
    score: float  # on the rows that choose

    def describe(self) -> str:
        """Its figures."""
        low, middle, high = self.times
        return f"{middle:.2f} ({low:.2f} to {high:.2f}), score {self.score:.4f}"


Table = dict[str, Row]


@dataclass(frozen=True)
class Measurements:
    """Timings and scores of ways on one dense model, each made once and kept in `time.json`, under
    a hash of all that it depends on.

    Args:
        full: Judges on the rows that choose, those that searches read.
        seed: Of the dense model.
        path: Of the file.
        batch: Rows at once.
        shown: Whether standard error says how long a timing takes.
    """

    full: GlueEvaluator
    seed: int
    path: Path
    batch: int
    shown: bool

    @cached_property
    def head(self) -> Any:
        """The dense model."""
        return self.full.dense(self.full.downstream[0], self.seed).eval().requires_grad_(False)

    @cached_property
    def rows(self) -> TokenRows:
        """The rows that are timed: the first of those that choose."""
        rows: TokenRows = next(iter(self.full.tokens().dev.values()))
        count = LEAST * self.batch
        while count < MOST * self.batch and sum(rows.lengths[: count + self.batch]) <= TOKENS:
            count += self.batch
        chosen = [rows[at] for at in range(min(count, len(rows)))]
        return TokenRows.of(
            [(row.ids, row.first) for row in chosen], [0] * len(chosen), rows.layout
        )

    @property
    def about(self) -> str:
        """The rows that are timed, in words."""
        count, device = torch.get_num_threads(), self.full.torch_device
        where = f"{count} thread{'s' * (count > 1)}" if device.type == "cpu" else str(device)
        lengths = f"{min(self.rows.lengths):,} to {max(self.rows.lengths):,} tokens"
        return f"{len(self.rows)} rows of {lengths}, {self.batch} at once, {where}"

    def _key(self, *about: str, way: Way) -> str:
        """The hash under which a timing, or a score, is kept."""
        mask, full = way.mask and way.mask.digest, self.full
        parts = full.protocol, str(full.precision), *about
        return short_hash(*parts, repr(replace(way, mask=None)), str(mask))

    def _keep(self, new: dict[str, Any] | None = None) -> dict[str, Any]:
        """The scores and quartiles that the file holds, by their hashes, new ones among them."""
        kept = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        if new:
            write_text_in_one_move(self.path, json.dumps(kept := kept | new, indent=1) + "\n")
        return dict(kept)

    def times(self, ways: Mapping[str, Way], say: str) -> dict[str, list[float]]:
        """Name -> how many times as fast as dense: lower quartile, median and upper quartile.

        Args:
            ways: Those that the file holds are not timed again.
            say: Names them, on standard error; what is to be timed once more has another name.
        """
        where = say, self.about, machine_name(), torch.__version__
        keys = {name: self._key(*where, way=way) for name, way in ways.items()}
        kept = self._keep()
        if left := {name: way for name, way in ways.items() if keys[name] not in kept}:
            base = Way(dtype=torch.bfloat16 if self.full.precision == "bfloat16" else None)
            sides = {n: (way.on, [*way.batches(self.rows, self.batch)]) for n, way in left.items()}
            dense = [*base.batches(self.rows, self.batch)]
            how = REPEATS, self.full.torch_device, f"timing {say}" if self.shown else ""
            made = time_variants(base.on(self.head), dense, sides, *how)
            kept = self._keep({keys[name]: times for name, times in made.items()})
        return {name: kept[key] for name, key in keys.items()}

    def scores(self, way: Way, full: GlueEvaluator | None = None) -> tuple[float, TaskScores]:
        """The score of a way, and all scores, on the rows that choose, or another evaluator's."""
        full = full or self.full
        if way.dtype is not None:
            full = replace(full, precision="float32" if way.dtype == torch.float32 else "bfloat16")
        whole = full.tokens()
        cut = replace(whole, dev={part: way.rows(rows) for part, rows in whole.dev.items()})
        (name,) = full.downstream
        full = full.holding(tasks={name: cut}, start=full.start, digest="cut")
        model = way.on(copy.deepcopy(self.head))
        found = full.scores(model, name)
        detach(getattr(model, "whole", model), missing_ok=True)  # its memory is free at once
        return full.summary(found.values)[full.score_name], found

    def score(self, way: Way) -> float:
        """Its score on the rows that choose."""
        kept = self._keep()
        if (key := self._key(way=way)) not in kept:
            kept = self._keep({key: self.scores(way)[0]})
        return float(kept[key])

    def table(self, ways: Mapping[str, Way], say: str) -> Table:
        """The ways timed and scored; the arguments are those of `times`."""
        times = self.times(ways, say)
        return {name: Row(way, times[name], self.score(way)) for name, way in ways.items()}

    def model(self, way: Way) -> nn.Module:
        """The model to save, with a mask; its answers are in the unit of the labels."""
        head = rescale(copy.deepcopy(self.head), self.full.unit(self.full.downstream[0]))
        made = replace(way, mask=way.mask or Full(), read=self.full.shape.read).on(head)
        whole: nn.Module = getattr(made, "whole", made)
        return whole
