"""Tables of masks whose best choice is known: read from one file, without network or pickle.

table = load("recall-1")                        # 4,096 choices of 12 heads, every one judged
table.query("000100010000")["nll"]              # nats a token, of calibration tokens
table.optimum(budget=0.4).choice                # what exhaustive search picks there
table.regret("000100010000", budget=0.4)        # how much more it loses, on test tokens
study.optimize(table.objective, n_trials=60)    # an Optuna study

Each unit (a head or a layer) of a decoder has one of several masks; a choice says which, one digit
a unit. A file is Parquet; its metadata hold the datasheet as JSON. A table that is not complete
answers what it holds, and has no optimum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from masksearch import Mask, Shape, Units
from masksearch.contracts import Evaluator, Objective, Report
from masksearch.errors import DataError, unknown_name
from masksearch.files import write_in_one_move
from masksearch.gates.units import Unit
from masksearch.masks import parse
from masksearch.masks.lower import lower
from masksearch.masks.measure import ROUNDING
from masksearch.masks.text import short_text
from masksearch.strategies.build import spec_of
from masksearch_bench.replay import replayed

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

FORMAT = "masksearch-table-1"
Tokens = Literal["calibration", "validation", "test"]
Choice = str | Sequence[int]
HERE = Path(__file__).parent  # the folder of the tables
PAIRS = "pairs"  # the cost of the kept pairs of tokens


@dataclass(frozen=True)
class Datasheet:
    """The sheet of a table: its contents, how it was made, and what it does not show.

    Args:
        name: Of the table.
        what: The model and the process that it has learned.
        licence: Of the file.
        limits: What the table does not show.
        objective: What cells are ranked by: its name, and `"min"` or `"max"`.
        shape: Of the model, see `Shape.to_dict`.
        unit: `"layer"`, `"kv_head"` or `"head"`.
        levels: The masks of a unit, as text, the cheapest first.
        free: The units that choices are about.
        rest: The level of the others, counted from 0; none = the last.
        planned: How many cells there are to be.
        dense: Name of a value -> what the model says without a mask, of each set of tokens.
        chance: What a guess by how frequent tokens are loses, of each set of tokens.
        protocols: Set of tokens -> the evaluator's protocol.
        seed: Of the evaluations.
        checkpoint: File or package -> SHA-256 of the weights.
        environment: Versions, threads and CPU flags of the machine that judged.
        dense_bytes: `cost/length` -> bytes of the dense cache.
        kv_heads: KV heads of a layer; None = not a decoder.
    """

    name: str
    what: str
    licence: str
    limits: str
    objective: tuple[str, Literal["min", "max"]]
    shape: dict[str, Any]
    unit: Unit
    levels: tuple[str, ...]
    free: tuple[str, ...]
    planned: int
    dense: dict[str, dict[str, float]]
    chance: dict[str, float]
    protocols: dict[str, str]
    seed: int
    checkpoint: dict[str, str]
    environment: dict[str, str]
    dense_bytes: dict[str, int] = field(default_factory=dict)
    kv_heads: int | None = None
    rest: int | None = None
    format: str = FORMAT


@dataclass(frozen=True)
class Cell:
    """One choice, and what is known of it.

    Args:
        choice: One digit a free unit.
        values: `nll`, `recall`, `kl`, .., of one set of tokens.
        share: What it costs, as a share of the dense model, by the cost that was asked for.
        above_chance: Whether the model without a mask beats a guess by how frequent tokens are;
            where it does not, no cell says anything.
    """

    choice: str
    values: Mapping[str, float]
    share: float
    above_chance: bool

    def __getitem__(self, name: str) -> float:
        return self.values[name]


class Table:
    """A table of choices. See the module for its use.

    Args:
        sheet: What it is.
        cells: One row a choice: `choice`, `TOKENS/VALUE`, `pairs` and `ACCOUNT/LENGTH` in bytes.
    """

    def __init__(self, sheet: Datasheet, cells: pd.DataFrame) -> None:
        self.sheet = sheet
        self.cells = cells.set_index("choice", drop=False).sort_index()
        self.units = Units(
            Shape(**sheet.shape), tuple(map(parse, sheet.levels)), sheet.unit, sheet.kv_heads
        )
        self.free = [self.units.names.index(name) for name in sheet.free]
        self.rest = self.units.top if sheet.rest is None else sheet.rest

    def __repr__(self) -> str:
        return f"Table({self.sheet.name!r}: {len(self.cells):,} of {self.sheet.planned:,} cells)"

    def __len__(self) -> int:
        return len(self.cells)

    # -- what it knows -------------------------------------------------------------------------
    @property
    def complete(self) -> bool:
        """Whether every choice was judged, so that the best one is known."""
        return len(self.cells) == self.sheet.planned

    @property
    def whole(self) -> bool:
        """Whether choices are about every unit, so that strategies can search them."""
        return len(self.free) == len(self.units.names)

    @property
    def name(self) -> str:
        """The name of the value that ranks cells."""
        return self.sheet.objective[0]

    @property
    def sign(self) -> int:
        """1 where less is better, else -1."""
        return 1 if self.sheet.objective[1] == "min" else -1

    @property
    def costs(self) -> tuple[str, ...]:
        """Ways to count what a choice costs."""
        return (PAIRS, *self.sheet.dense_bytes)

    def shares(self, cost: str = PAIRS) -> pd.Series[float]:
        """The cost of each choice, as a share of the dense model.

        Args:
            cost: `"pairs"`, the kept pairs of tokens; or `"head/8192"`, the bytes of a cache of
                8,192 positions by a cache layout of `kv_bytes`.

        Raises:
            UnknownNameError: If the table has no such cost.
        """
        if cost not in self.costs:
            raise unknown_name("cost:", cost, self.costs)
        return self.cells[cost] / self.sheet.dense_bytes.get(cost, 1)

    def read_choice(self, choice: Choice) -> str:
        """A choice as text.

        Raises:
            ValueError: If it has another number of units, or a level that there is not.
        """
        digits = [*map(str, choice)]
        top = len(self.sheet.levels) - 1
        if len(digits) != len(self.free) or any(not d.isdigit() or int(d) > top for d in digits):
            raise ValueError(
                f"a choice of table {self.sheet.name} is {len(self.free)} levels from 0 to "
                f"{top}, the first of {self.sheet.free[0]}; got {len(digits)}: {''.join(digits)}"
            )
        return "".join(digits)

    def known(self, tokens: Tokens) -> Tokens:
        """The name of a set of tokens; UnknownNameError if choices were not judged on it."""
        if tokens not in self.sheet.protocols:
            raise unknown_name("tokens:", tokens, (*self.sheet.protocols,))
        return tokens

    def query(self, choice: Choice, tokens: Tokens = "calibration", cost: str = PAIRS) -> Cell:
        """The cell of one choice.

        Args:
            choice: One level a unit: `"0100.."`, or numbers.
            tokens: Which set judges: choose by `"calibration"`, report `"test"`.
            cost: What `share` counts, see `shares`.

        Raises:
            DataError: If it was not judged.
            UnknownNameError: If the table has no such tokens.
        """
        name, prefix = self.read_choice(choice), f"{self.known(tokens)}/"
        if name not in self.cells.index:
            raise DataError(
                f"table {self.sheet.name} has no cell {name}: it holds {len(self.cells):,} of "
                f"{self.sheet.planned:,}; a cell that is missing has no substitute"
            )
        row = self.cells.loc[name]
        values = {
            key[len(prefix) :]: float(row[key]) for key in row.index if key.startswith(prefix)
        }
        dense, chance = self.sheet.dense[tokens][self.name], self.sheet.chance.get(tokens)
        above = chance is None or self.sign * dense < self.sign * chance
        return Cell(name, values, float(self.shares(cost)[name]), above)

    # -- the best ------------------------------------------------------------------------------
    def affordable(self, budget: float, cost: str = PAIRS) -> pd.DataFrame:
        """The cells within a budget.

        Raises:
            DataError: If the table is not complete: what it lacks may be better.
            ValueError: If no choice is as cheap.
        """
        if not self.complete:
            raise DataError(
                f"table {self.sheet.name} is not complete ({len(self.cells):,} of "
                f"{self.sheet.planned:,} cells), so it has no optimum"
            )
        self.refuse_less(budget, cost)
        return self.cells[self.shares(cost) <= budget * (1 + ROUNDING)]

    def refuse_less(self, budget: float, cost: str = PAIRS) -> None:
        """Raises ValueError if no choice is as cheap as a budget."""
        least = self.shares(cost).min()
        if budget < least * (1 - ROUNDING):
            raise ValueError(
                f"the cheapest choice of table {self.sheet.name} costs {least:.4g} of "
                f"dense {cost}, got budget={budget:g}; give at least that"
            )

    def optimum(self, budget: float, cost: str = PAIRS, tokens: Tokens = "calibration") -> Cell:
        """The best choice within a budget, by brute force; of equal ones the first.

        Args:
            budget: Largest share of the dense cost, in (0, 1].
            cost: How that is counted, see `shares`.
            tokens: By which set it is the best. Of `"calibration"` it is what a search can find;
                of `"test"` the least that any choice loses.
        """
        name = f"{self.known(tokens)}/{self.name}"
        ranked = self.affordable(budget, cost)[name] * self.sign
        return self.query(str(ranked.idxmin()), tokens, cost)

    def regret(self, choice: Choice, budget: float, cost: str = PAIRS) -> float:
        """How much worse a choice is than what exhaustive search picks within the budget on
        calibration tokens, both read on test tokens; it can be below 0.

        Raises:
            ValueError: If the choice costs more than the budget.
        """
        cell = self.query(choice, "test", cost)
        if cell.share > budget * (1 + ROUNDING):
            raise ValueError(
                f"choice {cell.choice} costs {cell.share:.4g} of dense {cost}, more "
                f"than the budget {budget:g}"
            )
        best = self.query(self.optimum(budget, cost).choice, "test")
        return self.sign * (cell[self.name] - best[self.name])

    def front(self, tokens: Tokens = "calibration", cost: str = PAIRS) -> pd.DataFrame:
        """The choices that no other beats in cost and score, the cheapest first."""
        cells, name = self.affordable(1.0, cost), f"{self.known(tokens)}/{self.name}"
        scores, shares = cells[name], self.shares(cost)[cells.index]
        front = pd.DataFrame({"choice": cells.choice, "share": shares, self.name: scores})
        front = front.iloc[np.lexsort((scores * self.sign, shares))]
        least = (front[self.name] * self.sign).cummin()
        return front[least.diff().fillna(-1.0) < 0].reset_index(drop=True)

    # -- as what others search -----------------------------------------------------------------
    @property
    def directions(self) -> list[str]:
        """Of `objective`, for `optuna.create_study(directions=)`."""
        return ["minimize" if self.sign > 0 else "maximize", "minimize"]

    def objective(self, trial: BaseTrial) -> tuple[float, float]:
        """Score on calibration tokens and cost, of a choice that an Optuna trial draws, one
        parameter a unit."""
        top = len(self.sheet.levels) - 1
        cell = self.query([trial.suggest_int(name, 0, top) for name in self.sheet.free])
        return cell[self.name], cell.share

    def mask(self, choice: Choice) -> Mask:
        """The mask of a choice."""
        levels = [self.rest] * len(self.units.names)
        for unit, digit in zip(self.free, self.read_choice(choice), strict=True):
            levels[unit] = int(digit)
        return self.units.mask(levels)

    def choice_of(self, mask: Mask) -> str:
        """Inverse of `mask`.

        Raises:
            ValueError: If a unit has a mask that is none of the levels, or one that is not free.
        """
        levels = [self.level_of(mask, unit) for unit in range(len(self.units.names))]
        fixed = [level for unit, level in enumerate(levels) if unit not in self.free]
        if set(fixed) - {self.rest}:
            raise ValueError(
                f"{short_text(mask)} changes units that table {self.sheet.name} leaves at "
                f"{self.sheet.levels[self.rest]}; it knows choices of {', '.join(self.sheet.free)}"
            )
        return "".join(str(levels[unit]) for unit in self.free)

    def level_of(self, mask: Mask, unit: int) -> int:
        """The level that a mask has in one unit."""
        layer, group = divmod(unit, self.units.units_per_layer)
        plane, plane_mask = Shape(**self.sheet.shape | {"layers": 1}), mask.of_layer(layer)
        heads = range(group * self.units.planes, (group + 1) * self.units.planes)
        for level, local in enumerate(self.units.levels):
            theirs = local.of_layer(layer)
            if all(same(plane_mask.of_head(h), theirs.of_head(h), plane) for h in heads):
                return level
        raise ValueError(
            f"{short_text(mask)} has in {self.units.names[unit]} none of the masks of table "
            f"{self.sheet.name}: {', '.join(self.sheet.levels)}"
        )

    def evaluator(self, tokens: Tokens = "calibration") -> TableEvaluator:
        """The table as an evaluator: every strategy of the package searches it unchanged."""
        return TableEvaluator(self, self.known(tokens))

    def simulate(
        self,
        strategy: Any,
        *,
        slots: int = 1,
        seeds: Iterable[int] = range(5),
        trials: int = 60,
        **options: Any,
    ) -> pd.DataFrame:
        """The result of a search, replayed through the package's own session.

        Evaluations take equally long, so with several slots the strategy proposes what is next
        before it knows the last ones. Nothing is kept on disk.

        Args:
            strategy: As of `ms.search`.
            slots: Trials at a time.
            seeds: Of the searches.
            trials: Of each.
            options: What else `ms.search` takes; `space=` is the units by default, and "allocate"
                is told them.

        Returns:
            One row an evaluation: `seed`, `evaluation` from 1 on, `choice`, `share`, the score on
            calibration tokens, and on test tokens as `test`.

        Raises:
            ValueError: If choices are not about every unit (`whole`).
        """
        if not self.whole:
            raise ValueError(
                f"strategies search all units, and table {self.sheet.name} is about "
                f"{len(self.free)} of {len(self.units.names)}: search it by table.objective, or "
                "judge a selector that is a function"
            )
        rows: list[dict[str, Any]] = []
        spec = spec_of(strategy)
        space = None if spec.space == "none" else self.units
        if spec.with_units is not None:
            which = {"unit": self.sheet.unit, "levels": self.units.levels}
            options["strategy_options"] = spec.with_units(
                which, options.get("strategy_options", {})
            )
        for seed in seeds:
            how = {"trials": trials, "seed": seed, "strategy": strategy, "space": space, **options}
            judged = replayed(evaluator=self.evaluator(), slots=slots, **how)
            for number, choice in enumerate(dict.fromkeys(map(self.choice_of, judged)), 1):
                cell, test = self.query(choice), self.query(choice, "test")
                about = {"seed": seed, "evaluation": number, "choice": choice, "share": cell.share}
                rows.append({**about, self.name: cell[self.name], "test": test[self.name]})
        return pd.DataFrame(rows)


@lru_cache(maxsize=4096)
def same(one: Mask, other: Mask, plane: Shape) -> bool:
    """Whether two masks are equal in one head."""
    if one == other:
        return True
    alone = Shape(plane.length, 1, 1, causal=plane.causal)
    return torch.equal(lower(one, alone), lower(other, alone))


class TableEvaluator(Evaluator):
    """Looks up what a mask scores. It has no model, so strategies that train gates do not run on
    it: they take an evaluator of the table's checkpoint.

    Args:
        table: The table.
        tokens: Which set judges.
    """

    weights_frozen, seedless = True, True

    def __init__(self, table: Table, tokens: Tokens = "calibration") -> None:
        self.table, self.tokens = table, tokens

    @property
    def shape(self) -> Shape:
        """The model's."""
        return self.table.units.shape

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The table's, whose worst value is that of its worst cell; and sparsity."""
        name, goal = self.table.sheet.objective
        values = self.table.cells[f"{self.tokens}/{name}"] * self.table.sign
        worst = Objective(name, goal, float(values.max()) * self.table.sign)
        return (worst, Objective("effective_sparsity", "max", 0.0))

    @property
    def protocol(self) -> str:
        """That of the evaluator whose scores these are."""
        return f"table-{self.table.sheet.protocols[self.tokens]}"

    @property
    def kv_head_count(self) -> int | None:
        """The model's."""
        return self.table.sheet.kv_heads

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields what the table says."""
        cell = self.table.query(self.table.choice_of(mask), self.tokens)
        yield Report(0, dict(cell.values))


# -- files ---------------------------------------------------------------------------------------
def names() -> dict[str, Path]:
    """Name -> file of the tables that are installed."""
    paths = sorted(HERE.glob("*.parquet"), key=lambda path: natural(path.stem))
    return {path.stem: path for path in paths}


def natural(name: str) -> tuple[str, int, str]:
    """A key that sorts `"recall-10"` behind `"recall-9"`."""
    family, _, number = name.rpartition("-")
    return (family, int(number), "") if number.isdigit() else (name, 0, number)


def family_of(name: str) -> str:
    """`"recall"` of `"recall-12"`: tables of models that have learned the same."""
    return name.rpartition("-")[0] or name


def load(name: str | Path) -> Table:
    """Opens a table.

    Args:
        name: Of one that is installed, or a Parquet file that `build` has written.

    Raises:
        UnknownNameError: If there is none of that name; names the nearest.
        DataError: If the file is damaged, or its hash is not the one in `SHA256SUMS` beside it.
    """
    tables = names()
    path = Path(name) if str(name).endswith(".parquet") else tables.get(str(name))
    if path is None:
        raise unknown_name("table:", str(name), (*tables,))
    return read_table(path)


def read_table(path: Path) -> Table:
    """Reads a file, and checks it."""
    try:
        content = path.read_bytes()
        stored = pq.read_table(path)
        sheet = json.loads((stored.schema.metadata or {})[b"masksearch"])
        if sheet["format"] != FORMAT:
            raise DataError(
                f"{path} has the format {sheet['format']!r}, this version reads {FORMAT!r}; "
                "install the masksearch that wrote it"
            )
        values = {each.name: sheet[each.name] for each in fields(Datasheet) if each.name in sheet}
        lists = ("objective", "levels", "free")
        made = Datasheet(**values | {key: tuple(sheet[key]) for key in lists})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no table of choices: {error}") from error
    sums = path.parent / "SHA256SUMS"
    if sums.is_file():
        lines = [line.split() for line in sums.read_text().splitlines()]
        stated = {name: digest for digest, name in lines}.get(path.name)
        actual = hashlib.sha256(content).hexdigest()
        if stated != actual:
            raise DataError(
                f"{path} has the SHA-256 {actual[:16]}.., and {sums.name} beside it says "
                f"{(stated or 'nothing of it')[:16]}..; install the package again"
            )
    return Table(made, stored.to_pandas())


def write_table(table: Table, path: Path) -> Path:
    """Writes a table as `load` reads it, in one move."""
    stored = pa.Table.from_pandas(table.cells, preserve_index=False)
    about = {b"masksearch": json.dumps(asdict(table.sheet), sort_keys=True).encode()}
    with write_in_one_move(path) as beside:
        pq.write_table(stored.replace_schema_metadata(about), beside, compression="zstd")
    return path
