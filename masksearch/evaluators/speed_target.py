"""A target of time in place of a share of pairs: which share of a kernel's tiles meets it, which
drawn masks of tiles do, and whether a found mask does.

target = aim(1.3, evaluator, seed=0, run=Path("run"), batch=8, shown=True)
target.share                                # of the pairs, for a search by gates of tiles
target.drawn                                # name -> mask, each as dense as the target lets it

All timings are of the whole model on rows of its own, dense and masked in turns, in a process of
their own (`masksearch.models.speed.time_masks`). Each is made once and kept in `time.json`, under
a hash of all that it depends on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from masksearch.analysis.stats import PairedDifference
from masksearch.attention.kernels.choose import grain_on
from masksearch.contracts import Shape, generator
from masksearch.evaluators.embedding import EmbeddingEvaluator
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.files import short_hash, write_text_in_one_move
from masksearch.masks.baselines import equal_cost_baselines
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Window
from masksearch.masks.lower import Block, block_view, by_tiles, spread_tiles
from masksearch.masks.measure import effective_density
from masksearch.masks.tables import BlockLayout
from masksearch.models.speed import time_masks
from masksearch.study.records import machine_name
from masksearch.training.checkpoints import digest

KEPT = "time.json"
SHARES = (0.5, 0.35, 0.25, 0.15, 0.08)  # of all tiles, that are timed first
BATCHES, REPEATS = 4, 2  # of the first and the last timing
PAIRS = 4  # of runs of a timing, at least; of fewer there are no quartiles
STEP = 0.005  # of the shares at which drawn masks are looked for
LIMIT = "the diagonal's tiles"
DRAWN_SHARES = {f"{share:.0%} of the tiles": share for share in SHARES} | {LIMIT: 0.0}
DRAWINGS = 3  # of each family of drawn masks
CUTS = 2  # lower shares that a found mask is cut at, at most
LARGE_LOSS = 0.05  # of the score, above which dense attention is recommended
DRAWN = 43  # stream of random numbers


@dataclass(frozen=True)
class Timings:
    """Timings of one model, each made once.

    Args:
        path: Of the file that keeps them.
        make: Makes the model.
        batches: Arguments of its forward pass.
        device: Where it computes.
        shown: Whether standard error says how long a timing takes.
        model: Hash of the model.
    """

    path: Path
    make: Callable[[], nn.Module]
    batches: tuple[Mapping[str, torch.Tensor], ...]
    device: torch.device
    shown: bool = True
    model: str = ""

    @cached_property
    def key(self) -> str:
        """Hash of all that a timing depends on, beside the mask: model, rows, threads, device."""
        parts = [(str(n), *each) for n, batch in enumerate(self.batches) for each in batch.items()]
        about = self.model, self.rows, machine_name(), torch.__version__, grain_on(self.device)
        return digest(repr(about), {f"{n} {name}": tensor for n, name, tensor in parts})

    def of(self, masks: Mapping[str, Mask], say: str, few: bool = False) -> dict[str, list[float]]:
        """Name -> how many times as fast as dense: lower quartile, median and upper quartile.

        Args:
            masks: Those that the file holds are not timed again.
            say: Names them, on standard error.
            few: Whether half the runs will do, on all batches: a batch's padding sets its gain.
        """
        kept = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else {}
        keys = {name: short_hash(self.key, name, mask.digest) for name, mask in masks.items()}
        if left := {name: mask for name, mask in masks.items() if keys[name] not in kept}:
            least = -(-PAIRS // len(self.batches))
            how = max(least, REPEATS // (1 + few)), self.device, say if self.shown else ""
            for name, times in time_masks(self.make(), left, self.batches, *how).items():
                kept[keys[name]] = {"mask": name, "rows": self.rows, "times": times}
            write_text_in_one_move(self.path, json.dumps(kept, indent=1) + "\n")
        return {name: kept[key]["times"] for name, key in keys.items()}

    @property
    def rows(self) -> str:
        """The rows that are timed, in words."""
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in self.batches])
        threads = torch.get_num_threads()
        where = str(self.device)
        if where == "cpu":
            where = f"{threads} thread" + "s" * (threads > 1)
        size = len(self.batches[0]["attention_mask"])
        return f"{size} rows of {int(lengths.min()):,} to {int(lengths.max()):,} tokens, {where}"


@dataclass(frozen=True)
class Target:
    """How many times as fast as dense a model is to be, and what that leaves to masks.

    Args:
        times: The target, above 1.
        shape: Of the masks, with the lengths of the data.
        block: Queries and keys of a tile of the device's kernel.
        timings: Of the model.
    """

    times: float
    shape: Shape
    block: Block
    timings: Timings

    @cached_property
    def tiles(self) -> dict[str, BlockLayout]:
        """Name -> tiles drawn at random, and last none but the diagonal's."""
        return {n: random_tiles(s, self.shape, self.block) for n, s in DRAWN_SHARES.items()}

    @cached_property
    def table(self) -> dict[str, list[float]]:
        """Name of such tiles -> times as fast."""
        return self.timings.of(self.tiles, "timing")

    def point(self, name: str) -> tuple[float, float]:
        """Of such tiles: their share of the pairs, and the time as a share of dense attention's,
        in the lower quartile of the speed."""
        return effective_density(self.tiles[name], self.shape), 1 / self.table[name][0]

    @cached_property
    def limit(self) -> tuple[float, float]:
        """The point of the diagonal's tiles."""
        return self.point(LIMIT)

    @cached_property
    def share(self) -> float:
        """The share of the pairs at which random tiles meet the target.

        Raises:
            ValueError: If the diagonal's tiles alone do not meet it.
        """
        best, median, _ = self.table[LIMIT]
        if best < self.times:
            raise ValueError(
                f"{self.times:g} times as fast is not to be had at {self.shape.length} tokens: "
                f"without any pair but those of {LIMIT} the model is {median:.2f} times as fast "
                f"(lower quartile {best:.2f}; {self.timings.rows}); ask for less, or for longer "
                "rows, which gain more"
            )
        below = self.limit
        for name in sorted(self.tiles, key=DRAWN_SHARES.__getitem__)[1:]:
            at = self.point(name)
            if at[1] > 1 / self.times:
                return self.between(below, at)
            below = at
        return below[0]

    def between(self, below: tuple[float, float], above: tuple[float, float]) -> float:
        """The share at which a line through two points, each share and time, meets the target;
        not below the diagonal's, and rounded to what drawn masks are looked for at."""
        (low, fast), (high, slow) = below, above
        if slow > fast and high != low:
            share = low + (1 / self.times - fast) * (high - low) / (slow - fast)
        elif slow > 1 / self.times:
            share = low
        else:  # no slower, though denser
            share = 1.0 if high != low else high
        return max(self.limit[0], min(1.0, round(share // STEP * STEP, 3)))

    def describe(self) -> str:
        """The table of times, and the share that is taken."""
        lines = [f"{self.timings.rows}; times as fast as dense attention (quartiles):"]
        for name, (low, middle, high) in self.table.items():
            lines.append(f"  {name:<24} {middle:.2f} ({low:.2f} to {high:.2f})")
        return "\n".join([*lines, f"  {self.times:g} times: {self.share:.1%} of the pairs"])

    @cached_property
    def drawn(self) -> dict[str, Mask]:
        """The hand-designed masks of tiles: of each family the densest of three that meets the
        target, one at the share of random tiles and two where a line through timings meets it."""

        @cache
        def draw(share: float) -> Mapping[str, Mask]:
            return equal_cost_baselines(share, self.shape, block=self.block)

        shares = dict.fromkeys(draw(self.share), self.share)
        points = {name: [self.limit] for name in shares}
        met: dict[str, tuple[float, Mask]] = {}
        for number in range(1, DRAWINGS + 1):
            masks = {n: draw(at)[n] for n, at in shares.items() if n in draw(at)}
            say = f"{len(masks)} drawn masks, {number} of {DRAWINGS}"
            timed = self.timings.of({f"{n}, {number}": m for n, m in masks.items()}, say, few=True)
            for name, mask in masks.items():
                low, *_ = timed[f"{name}, {number}"]
                density = effective_density(mask, self.shape)
                points[name].append((density, 1 / low))
                if low >= self.times and density > met.get(name, (0.0, mask))[0]:
                    met[name] = density, mask
                shares[name] = min(self.between(*sorted(points[name][-2:])), 2 * density)
        return {f"{name} at {self.times:g} times": mask for name, (_, mask) in met.items()}

    def fit(self, name: str, mask: Mask, cut: Callable[[float], Mask]) -> Mask:
        """A found mask, or where it is too slow, at most twice, one of a lower share.

        Args:
            name: Of its timings.
            mask: As it was found.
            cut: Share of the pairs -> mask, without training; it may refuse one.
        """
        for number in range(CUTS + 1):
            label = f"{name}, cut {number}" if number else name
            low, *_ = self.timings.of({label: mask}, f"timing {label}")[label]
            if low >= self.times or number == CUTS:
                break
            at = effective_density(mask, self.shape), 1 / low
            share = max(self.limit[0], min(self.between(self.limit, at), at[0] - STEP))
            try:
                mask = cut(share)
            except ValueError:  # its likeliest tile of each row is more than that
                break
        return mask

    @property
    def about(self) -> dict[str, Any]:
        """The target, the rows that were timed, and the table, as plain data."""
        return {"asked": self.times, "rows": self.timings.rows, "of random tiles": self.table}

    def time_judged(self, masks: Mapping[str, Mask]) -> dict[str, list[float]]:
        """How fast the model is under masks, timed once more; "dense" is left out."""
        last = {f"{n}, last timing": mask for n, mask in masks.items() if n != "dense"}
        found = self.timings.of(last, "last timing")
        return {name.removesuffix(", last timing"): each for name, each in found.items()}

    def describe_answer(
        self,
        losses: Mapping[str, PairedDifference],
        taken: str,
        quartiles: Mapping[str, Sequence[float]],
    ) -> str:
        """The first words of an answer: the score that is lost, and how fast the model is.

        Args:
            losses: Of each mask that was judged, minus dense attention.
            taken: The name of the one that is taken.
            quartiles: Of their speeds.
        """
        low, middle, high = quartiles[taken]
        met = "" if low >= self.times else f", misses {self.times:g}"
        words = f"{losses[taken].text(signed=True)}, {middle:.2f} times as fast{met} "
        words += f"(quartiles {low:.2f} to {high:.2f}; {self.timings.rows})."
        for name, (least, own, _) in quartiles.items():
            if name != taken:
                words += f" {name}: {own:.2f} times, lower quartile {least:.2f}."
        if max(loss.value for loss in losses.values()) < -LARGE_LOSS:
            return f"Dense attention is recommended: every mask loses over {LARGE_LOSS:g}. {words}"
        return words


def aim(
    times: float,
    start: GlueEvaluator | EmbeddingEvaluator,
    seed: int,
    run: Path,
    batch: int,
    shown: bool,
) -> Target:
    """The target of a model, by the rows that searches read.

    Args:
        times: As many times as fast as dense attention, above 1.
        start: Judges masks on the model that was given.
        seed: Of the dense model.
        run: Keeps the timings.
        batch: Rows of a batch.
        shown: As of `Timings`.
    """
    if isinstance(start, EmbeddingEvaluator):
        rows, make = start.data.queries, start.model
    else:
        (name,) = start.downstream
        rows = next(iter(start.tokens(name).dev.values()))
        make = partial(start.dense if start.is_tuned else start.begin, name, seed)
    numbers = range(min(batch * BATCHES, len(rows)))
    chosen = [[*numbers[at : at + batch]] for at in range(0, len(numbers), batch)]
    batches = map(rows.batch, chosen)
    given = tuple({n: part for n, part in each.items() if n != "labels"} for each in batches)
    timings = Timings(run / KEPT, make, given, start.torch_device, shown, start.protocol)
    return Target(times, start.shape, grain_on(start.torch_device), timings)


def random_tiles(share: float, shape: Shape, block: Block) -> BlockLayout:
    """So many of the tiles of each head, drawn at random, and those of the diagonal."""
    side = min(block)
    tile = block[0] // side, block[1] // side
    blocks = -(-shape.length // side)
    own = by_tiles(block_view(Window(0), shape.length, side), tile).any(-1).any(-2)[0, 0]
    order = torch.rand(shape.layers, shape.heads, own.numel(), generator=generator(DRAWN))
    order[..., own.flatten()] = -1.0
    most = max(int(own.sum()), round(share * own.numel()))
    kept = torch.zeros_like(order, dtype=torch.bool)
    kept.scatter_(-1, order.argsort(-1)[..., :most], value=True)
    return BlockLayout(spread_tiles(kept.view(*kept.shape[:2], *own.shape), blocks, tile), side)
