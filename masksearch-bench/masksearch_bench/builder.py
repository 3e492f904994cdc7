"""Builds a table: every choice of a model's units, judged on three sets of tokens.

masksearch-bench build FILE.py:NAME --out tables      # NAME() gives a TableSpec, or several

A build is a search of the package whose trials are blocks of choices: so it runs on any executor,
and after a kill what was judged is not judged again.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from masksearch import Mask, Units, search
from masksearch.contracts import MAJORITY, Evaluator, Executor, Report, Split
from masksearch.errors import NativeError, SearchError
from masksearch.evaluators.wrappers import EvaluatorWrapper
from masksearch.gates.units import Allocation
from masksearch.strategies.opening import FixedQueue
from masksearch_bench.table import PAIRS, Datasheet, Table, Tokens, write_table
from masksearch_bench.tree import fits, tree_values
from masksearch_decoders import kv_bytes
from masksearch_decoders.engines import CACHE_LAYOUTS

SPLITS: dict[Tokens, Split] = {
    "calibration": "validation",
    "validation": "holdout",
    "test": "test",
}
CELLS = "cells.parquet"


@dataclass(frozen=True)
class TableSpec:
    """The contents of a table to build.

    Args:
        name: Of the table and its file.
        judge: Judges masks; of its splits `"validation"`, `"holdout"` and `"test"` are
            the tokens.
        units: The units, and their masks.
        what: For the datasheet, as `licence` and `limits`: the model and what it has learned.
        licence: Of the file.
        limits: What the table does not show.
        free: Units that choices are about; none = all.
        rest: The level of the others, counted from 0; none = the last.
        seed: Of the evaluations.
        lengths: Positions at which bytes of caches are counted (decoders).
        block: Choices of a trial.
        tokens: The sets of tokens that choices are judged on, `"calibration"` among them; without
            `"test"` the table knows no regret.
    """

    name: str
    judge: Evaluator
    units: Units
    what: str
    licence: str = "Apache-2.0"
    limits: str = ""
    free: tuple[str, ...] = ()
    rest: int | None = None
    seed: int = 0
    lengths: tuple[int, ...] = (512, 2048, 8192, 32768)
    block: int = 256
    tokens: tuple[Tokens, ...] = get_args(Tokens)

    def __post_init__(self) -> None:
        unknown = [name for name in self.free if name not in self.units.names]
        if unknown:
            raise ValueError(f"free units are of {self.units.names}, got {', '.join(unknown)}")
        if "calibration" not in self.tokens or set(self.tokens) - {*SPLITS}:
            raise ValueError(
                f"tokens are calibration and others of {', '.join(SPLITS)}, got {self.tokens}"
            )
        if self.rest is not None and not 0 <= self.rest <= self.units.top:
            raise ValueError(f"rest is a level from 0 to {self.units.top}, got {self.rest}")

    @property
    def names(self) -> tuple[str, ...]:
        """The free units."""
        return self.free or self.units.names

    def judges(self) -> dict[Tokens, Evaluator]:
        """One of each set of tokens."""
        return {tokens: self.judge.on(SPLITS[tokens]) for tokens in self.tokens}

    def choices(self) -> list[Allocation]:
        """All choices: levels of the free units, in order."""
        return list(product(range(len(self.units.levels)), repeat=len(self.names)))

    def allocation(self, choice: Sequence[int]) -> Allocation:
        """The levels of all units."""
        level_of = dict(zip(self.names, choice, strict=True))
        rest = self.units.top if self.rest is None else self.rest
        return tuple(level_of.get(name, rest) for name in self.units.names)


@dataclass(frozen=True)
class Blocks(EvaluatorWrapper):
    """Judges all choices of the block that a mask is the first of, and leaves them in the trial's
    folder."""

    spec: TableSpec
    blocks: tuple[tuple[Allocation, ...], ...]

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields what the first choice scores on calibration tokens."""
        units = self.spec.units
        firsts = [units.mask(self.spec.allocation(block[0])).digest for block in self.blocks]
        block = self.blocks[firsts.index(mask.digest)]
        rows: list[dict[str, str | float]]
        rows = [{"choice": "".join(map(str, choice))} for choice in block]
        for tokens, judge in self.spec.judges().items():
            values_of_rows = judged(judge, self.spec, block, workdir)
            for row, values in zip(rows, values_of_rows, strict=True):
                row |= {f"{tokens}/{name}": v for name, v in values.items() if "/" not in name}
        pd.DataFrame(rows).to_parquet(workdir / CELLS, index=False)
        yield Report(0, dict(values_of_rows[0]))


def judged(
    judge: Evaluator, spec: TableSpec, block: Sequence[Allocation], workdir: Path
) -> list[dict[str, float]]:
    """The last report of each choice: at once where the model allows it, else one by one."""
    allocations = [spec.allocation(choice) for choice in block]
    if fits(judge, spec.units):
        values = dict(tree_values(judge, spec.units, allocations, spec.seed))
        return [values[each] for each in allocations]
    reports = []
    for each in allocations:
        *_, last = judge(spec.units.mask(each), seed=spec.seed, workdir=workdir)
        reports.append(dict(last.values))
    return reports


def build(spec: TableSpec, out: Path | str, *, executor: Executor | None = None) -> Path:
    """Builds a table, or goes on with it: `OUT/NAME.parquet`, and the run in `OUT/NAME.run`.

    Args:
        spec: What it holds.
        out: A folder.
        executor: Where blocks are judged, see `ms.search`; its workers see the folder.

    Returns:
        The file, with what was judged: a block that failed leaves the table incomplete.

    Raises:
        SearchError: If no block was judged.
    """
    out = Path(out)
    choices = spec.choices()
    starts = range(0, len(choices), spec.block)
    blocks = tuple(tuple(choices[at : at + spec.block]) for at in starts)
    firsts = {f"block {n}": spec.units.mask(spec.allocation(b[0])) for n, b in enumerate(blocks)}
    run = out / f"{spec.name}.run"
    search(
        *(None, Blocks(spec.judge, spec, blocks)),
        run=run,
        trials=len(blocks),
        seed=spec.seed,
        strategy=FixedQueue(firsts, [spec.seed]),
        executor=executor,
    )
    parts = [pd.read_parquet(path) for path in sorted(run.glob(f"trials/**/{CELLS}"))]
    if not parts:
        raise SearchError(f"no block of {spec.name} was judged; see masksearch status {run}")
    cells = pd.concat(parts).drop_duplicates("choice").reset_index(drop=True)
    return write_table(assembled(spec, cells, len(choices)), out / f"{spec.name}.parquet")


def assembled(spec: TableSpec, cells: pd.DataFrame, planned: int) -> Table:
    """The table of the cells, with what they cost and what the datasheet says."""
    judges = spec.judges()
    units, dense = spec.units, _judged_dense(judges, spec)
    [objective, *_] = spec.judge.objectives
    values = [name for name in cells.columns if name != "choice"]
    cells = cells.astype(dict.fromkeys(values, "float32"))
    cells[PAIRS] = [
        units.density(spec.allocation(tuple(map(int, choice)))) for choice in cells.choice
    ]
    bytes_of_dense = _add_bytes(cells, spec)
    sheet = Datasheet(
        name=spec.name,
        what=spec.what,
        licence=spec.licence,
        limits=spec.limits,
        objective=(objective.name, objective.goal),
        shape=units.shape.to_dict(),
        unit=units.unit,
        levels=tuple(map(str, units.levels)),
        free=spec.names,
        planned=planned,
        dense=dense,
        chance={
            tokens: values[f"{objective.name}{MAJORITY}"]
            for tokens, values in dense.items()
            if f"{objective.name}{MAJORITY}" in values
        },
        protocols={tokens: judge.protocol for tokens, judge in judges.items()},
        seed=spec.seed,
        checkpoint=dict(spec.judge.data_hashes()),
        environment=environment(),
        dense_bytes=bytes_of_dense,
        kv_heads=units.kv_heads or spec.judge.kv_head_count,
        rest=spec.rest,
    )
    return Table(sheet, cells)


def environment() -> dict[str, str]:
    """The versions and hardware that the last bits of a cell depend on."""
    return {
        "masksearch": metadata.version("masksearch"),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
    }


def _judged_dense(
    judges: Mapping[Tokens, Evaluator], spec: TableSpec
) -> dict[str, dict[str, float]]:
    """The values of the model with every unit at the top, by each set of tokens."""
    values_of: dict[str, dict[str, float]] = {}
    mask = spec.units.mask([spec.units.top] * len(spec.units.names))
    with tempfile.TemporaryDirectory() as folder:
        for tokens, judge in judges.items():
            *_, last = judge(mask, seed=spec.seed, workdir=Path(folder))
            values_of[tokens] = {str(name): float(value) for name, value in last.values.items()}
    return values_of


def _add_bytes(cells: pd.DataFrame, spec: TableSpec) -> dict[str, int]:
    """Adds columns of the caches' bytes, in every layout that counts all of the choices."""
    config = getattr(spec.judge, "config", None)
    dense: dict[str, int] = {}
    if config is None:
        return dense
    masks = [spec.units.mask(spec.allocation(tuple(map(int, each)))) for each in cells.choice]
    for layout in CACHE_LAYOUTS:
        for length in spec.lengths:
            with suppress(NativeError):
                bytes_of = [kv_bytes(mask, config, length, cache_layout=layout) for mask in masks]
                cells[f"{layout}/{length}"] = [each.bytes for each in bytes_of]
                dense[f"{layout}/{length}"] = bytes_of[0].dense_bytes
    return dense
