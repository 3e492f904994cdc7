"""The selectors: how each chooses, within a budget, which units see everything.

A selector gets a `masksearch_bench.Judged` and gives a choice for each budget; what it asks
`known.loss` for is counted. Those that look into the model get its evaluator, and the masks and
the costs of the table, from this file: no loss comes from there.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
import torch.nn.functional as F
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

import masksearch as ms
from masksearch.gates.units import Allocation, replaced
from masksearch_bench import Judged, Table, strategy

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.rivals import as_strategy
from experiments.rivals.attention_mass import attention_mass
from experiments.rivals.first_order import first_order, flip
from experiments.rivals.trained_models import score_units

Chosen = Iterator[tuple[float, Any]]
EVALUATIONS = 60  # of samplers
STEPS = {"steps": 300, "gate_lr": 0.05}  # of a training of gates
ROWS = 64  # sequences that Fisher's information is taken from


# -- hand-designed -------------------------------------------------------------------------------
def in_order(known: Judged, order: Sequence[int]) -> Chosen:
    """Raises units in an order, while the budget pays for them."""
    for budget in known.budgets:
        choice = (0,) * known.units
        for unit in order:
            raised = replaced(choice, unit, 1)
            if known.share(raised) <= budget:
                choice = raised
        yield budget, choice


def first_units(known: Judged) -> Chosen:
    """The lowest ones."""
    return in_order(known, range(known.units))


def last_units(known: Judged) -> Chosen:
    """The highest ones."""
    return in_order(known, range(known.units)[::-1])


def middle_units(known: Judged) -> Chosen:
    """Those nearest to the middle."""
    return in_order(
        known, sorted(range(known.units), key=lambda u: abs(u - (known.units - 1) / 2))
    )


def periodic(known: Judged) -> Chosen:
    """As many as the budget pays, evenly spread."""
    for budget, choice in in_order(known, range(known.units)):
        count, places = sum(choice), [0] * known.units
        for at in range(count):
            places[round((at + 0.5) * known.units / count - 0.5)] = 1
        yield budget, places


# -- by what masks lose --------------------------------------------------------------------------
def leave_one_out(known: Judged) -> Chosen:
    """By what is lost where one unit alone is local."""
    full = (1,) * known.units
    worth = [known.loss(replaced(full, u, 0)) for u in range(known.units)]
    return in_order(known, sorted(range(known.units), key=lambda u: -worth[u]))


def backward(known: Judged) -> Chosen:
    """Lowers in each round the unit that costs least, from all on."""
    choice: Allocation = (1,) * known.units
    path = []
    while any(choice):
        path.append(choice)
        lower = [replaced(choice, u, 0) for u, level in enumerate(choice) if level]
        choice = min(lower, key=known.loss)
    path.append(choice)
    for budget in known.budgets:
        yield budget, next(each for each in path if known.share(each) <= budget)


def forward(known: Judged) -> Chosen:
    """Raises in each round the unit that gains most and that the largest budget pays."""
    choice: Allocation = (0,) * known.units
    path = []
    while True:
        path.append(choice)
        higher = [replaced(choice, u, 1) for u, level in enumerate(choice) if not level]
        paid = [each for each in higher if known.share(each) <= known.budgets[-1]]
        if not paid:
            break
        choice = min(paid, key=known.loss)
    for budget in known.budgets:
        yield budget, [each for each in path if known.share(each) <= budget][-1]


def restore_one(known: Judged) -> Chosen:
    """By what is gained where one unit alone sees everything."""
    none = (0,) * known.units
    loss = {u: known.loss(replaced(none, u, 1)) for u in range(known.units)}
    return in_order(known, sorted(loss, key=loss.__getitem__))


def of_optuna(table: Table, sampler: Callable[..., BaseSampler]) -> Any:
    """What an Optuna sampler finds that knows nothing of budgets: of loss and pairs."""
    pairs = table.shares()

    def selector(known: Judged) -> Chosen:
        def objective(trial: optuna.Trial) -> tuple[float, float]:
            choice = [trial.suggest_int(name, 0, known.levels - 1) for name in table.sheet.free]
            return known.loss(choice), float(pairs[table.read_choice(choice)])

        study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=sampler(seed=known.seed)
        )
        study.optimize(objective, n_trials=EVALUATIONS)
        for budget in known.budgets:
            yield budget, known.best(budget)

    return selector


def exact(known: Judged) -> Chosen:
    """Judges every choice."""
    for choice in itertools.product(range(known.levels), repeat=known.units):
        known.loss(choice)
    for budget in known.budgets:
        yield budget, [*map(int, known.best(budget))]


# -- by a look into the model --------------------------------------------------------------------
def by_scores(table: Table, score: Callable[..., Any], judge: Callable[[], Any]) -> Any:
    """A selector that ranks units by a score of `experiments/rivals`."""

    def selector(known: Judged) -> Chosen:
        scores = score_units(judge(), table.units, score, 0)
        worth = [scores[name][-1] for name in table.sheet.free]
        return in_order(known, sorted(range(known.units), key=lambda u: -worth[u]))

    return selector


def fisher(units: ms.Units, model: Any, batches: Sequence[Any]) -> dict[str, list[float]]:
    """The diagonal of Fisher's information of gates on the far part of each head's attention: the
    mean over sequences of the squared derivative of a sequence's loss by the gate, at the gates of
    the model without a mask (as heads are pruned in arXiv 2204.09656, there of whole heads)."""
    bank = FarGates(units)
    found = torch.zeros(units.shape.layers, units.shape.heads, dtype=torch.float64)
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    ms.attach(model, bank, inputs={name: part[:1] for name, part in batches[0].items()})
    try:
        model.eval()
        for row in range(min(ROWS, len(whole["input_ids"]))):
            loss = model(**{name: part[row : row + 1] for name, part in whole.items()}).loss
            [derivative] = torch.autograd.grad(loss, bank.gates)
            found += derivative.double() ** 2
    finally:
        ms.detach(model)
    pooled = units.pool(found).tolist()
    return {name: [0.0, each] for name, each in zip(units.names, pooled, strict=True)}


class FarGates(torch.nn.Module):
    """The model's own attention, whose weights beyond the local mask are multiplied by a gate."""

    def __init__(self, units: ms.Units) -> None:
        super().__init__()
        self.length, self.layers, self.heads = (
            units.shape.length,
            units.shape.layers,
            units.shape.heads,
        )
        self.local = units.kept[0]
        self.gates = torch.nn.Parameter(torch.ones(self.layers, self.heads))

    def draw(self) -> None:
        """Nothing is random here."""

    def attend(self, layer: int, call: Any) -> torch.Tensor:
        """See `GateBank.attend`."""
        weights = call.weights()
        gate = self.gates[layer][:, None, None]
        kept = torch.where(self.local[layer], 1.0, gate)
        return F.dropout(weights * kept, call.dropout).to(call.value.dtype) @ call.value


def gates(table: Table, judge: Callable[[], Any], cost: str) -> Any:
    """DuoAttention's choice, by DAM's switches: trained on the frozen weights at the density of
    three full heads; one mask a budget is cut from them."""

    def selector(known: Judged) -> Chosen:
        units, wanted = table.units, densities(table, known.budgets, cost)
        options = {
            "gates": {"structure": "switch", "levels": units.levels, "unit": units.unit},
            "config": {**STEPS, "density": wanted[min(2, len(wanted) - 1)]},
            "densities": wanted,
        }
        with tempfile.TemporaryDirectory() as run:
            found = ms.search(
                *(None, judge()),
                run=run,
                trials=1 + len(wanted),
                strategy="dam",
                strategy_options=options,
                progress=None,
            )
            masks = [r.mask for r in found.records() if r.scored and r.mask is not None]
        cut = [table.choice_of(mask) for mask in masks]
        for budget in known.budgets:
            paid = [choice for choice in cut if known.share(choice) <= budget]
            yield budget, max(paid, key=known.share, default="0" * known.units)

    return selector


# -- the package's own ---------------------------------------------------------------------------
def densities(table: Table, budgets: Sequence[float], cost: str) -> list[float]:
    """The budgets as shares of the pairs of tokens, which the package's strategies are told: of
    as many of the first units as each pays."""
    shares, count = table.shares(cost), len(table.free)
    first = ["1" * full + "0" * (count - full) for full in range(count + 1)]
    paid = [[each for each in first if shares[each] <= budget][-1] for budget in sorted(budgets)]
    return [table.units.density([*map(int, each)]) for each in paid]


def told(
    table: Table, budgets: Sequence[float], cost: str, name: str, trials: int, **options: Any
) -> Any:
    """A strategy of the package, told the budgets."""
    own = {"strategy_options": options} if name == "allocate" else options
    return strategy(as_strategy(name), trials, budget=densities(table, budgets, cost), **own)


ALLOCATIONS: dict[str, dict[str, Any]] = {
    "restore": {"method": "restore"},
    "ablate": {"method": "ablate"},
    "greedy": {"method": "greedy"},
    "greedy, 3 tries": {"method": "greedy", "tries": 3},
}


def plain(table: Table, judge: Callable[[], Any]) -> dict[str, tuple[Any, bool]]:
    """Name -> selector, and whether it draws at random: those that ask for losses or look into
    the model, and so take tables of some of a model's units too.

    Args:
        table: The table.
        judge: Makes the evaluator of its model.
    """
    scores = {"attention mass": attention_mass, "first order": first_order, "flip": flip}
    scores["Fisher"] = fisher
    return {
        "first heads": (first_units, False),
        "last heads": (last_units, False),
        "middle heads": (middle_units, False),
        "every n-th head": (periodic, False),
        "leave one out": (leave_one_out, False),
        "greedy removal": (backward, False),
        "exact": (exact, False),
        **{name: (by_scores(table, score, judge), False) for name, score in scores.items()},
    }


def every(
    table: Table, judge: Callable[[], Any], budgets: Sequence[float], cost: str
) -> dict[str, tuple[Any, bool]]:
    """All selectors of a table of all units; see `plain`, and `judge` of masksearch_bench."""
    found = {**plain(table, judge), "gates": (gates(table, judge, cost), False)}
    where = table, budgets, cost
    for name in ("random", "tpe", "evolution"):
        found[name] = (told(*where, name, EVALUATIONS), True)
    for name, own in ALLOCATIONS.items():
        found[f"allocate {name}"] = (told(*where, "allocate", 400, **own), False)
    return found


def of_some_layers(table: Table, judge: Callable[[], Any]) -> dict[str, tuple[Any, bool]]:
    """Those of a table of some layers: the rounds and the scores of `allocate` by their rule."""
    found = {
        name.replace("heads", "layers").replace("head", "layer"): each
        for name, each in plain(table, judge).items()
    }
    found |= {"greedy rounds": (forward, False), "restore one": (restore_one, False)}
    for name, sampler in (("random", RandomSampler), ("tpe", TPESampler)):
        found[name] = (of_optuna(table, sampler), True)
    return found
