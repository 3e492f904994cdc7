"""From the name of a strategy, a sampler or an object to the strategy of a search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from optuna.samplers import BaseSampler

from masksearch.analysis.pareto import SLACK
from masksearch.attention.kernels.choose import grain_on
from masksearch.contracts import Evaluator, OneShot, Strategy
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.config import build_config, one_shot_parts
from masksearch.gates.discretise import least_density, weights_of
from masksearch.gates.unit_costs import DENSITY, WHOLE_TOKENS, WORK, find_cost, with_costs
from masksearch.gates.units import Units, read_levels, write_levels
from masksearch.masks import window
from masksearch.masks.measure import effective_density
from masksearch.neighbours import load_part, offered
from masksearch.strategies import prune
from masksearch.strategies.dam import OPTIONS, SPARSEBERT, Cut, DamStrategy, PublishedDamStrategy
from masksearch.strategies.samplers import SAMPLERS, OptunaStrategy, Space, try_space
from masksearch.study.records import Constraint
from masksearch.user_code import load_strategy


@dataclass(frozen=True)
class StrategyRequest:
    """A search's request: a strategy, and the other arguments of `build_strategy`."""

    strategy: Any
    space: Any
    evaluator: Evaluator
    seed: int
    run: Path
    options: Mapping[str, Any]
    limits: Mapping[str, Any]  # constraints and budgets


def _as_switches(units: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Units, which become switches: gates that choose one mask a unit."""
    gates = {"structure": "switch", **units, **options.get("gates", {})}
    return {**options, "gates": gates}


@dataclass(frozen=True)
class StrategySpec:
    """Everything that searches and the command line know of a strategy.

    Args:
        build: Makes it.
        options: Name -> type of its own options; None = it knows them itself.
        space: Whether a space is `"needed"`, `"optional"`, or `"none"` is drawn from.
        with_units: Puts units (`unit` and `levels`) into the options of a strategy that draws from
            no space; None = it takes none.
        gradients: Whether it needs an evaluator with differentiable(seed).
        gated: Whether options ask it to train gates, by options `gates` and `config`.
        budgets: The option that budgets are; empty = its draws are within them, None = it keeps
            none.
        file: The option that may name a file.
        trials: Those of a search on the command line that says neither trials nor seconds.
        prefix: Of its options in `--set`.
    """

    build: Callable[[StrategyRequest], Strategy]
    options: Mapping[str, Any] | None = field(default_factory=dict)
    space: Literal["needed", "optional", "none"] = "needed"
    with_units: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None
    gradients: bool = False
    gated: Callable[[Mapping[str, Any]], bool] | None = None
    budgets: str | None = ""
    file: str = ""
    trials: int = 20
    prefix: str = ""


def build_strategy(
    strategy: str | BaseSampler | Strategy,
    space: Space | None,
    evaluator: Evaluator,
    *,
    seed: int,
    run: Path,
    options: Mapping[str, Any],
    constraints: Sequence[Constraint] = (),
    budgets: Sequence[float] = (),
) -> Strategy:
    """The strategy that a name, `file.py:Name`, a sampler or an object stands for.

    Args:
        strategy: As in `masksearch.search`.
        space: Draws a mask from an Optuna trial; None where the strategy needs none.
        evaluator: Judges the masks.
        seed: Seed of the draws.
        run: The run folder, where one-shot jobs leave what they have found.
        options: Settings of this strategy alone.
        constraints: What the masks must keep.
        budgets: What they may cost, in turn.

    Raises:
        UnknownNameError: If the strategy or one of its options is unknown; names the nearest.
        SearchError: If it needs a space, or an evaluator with gradients, and there is none.
        SpaceError: If the space has a mistake that the first draw shows.
        LayerCountError, HeadCountError: If its masks are for another model.
    """
    spec, name = spec_of(strategy), strategy_name(strategy)
    names = options if spec.options is None else spec.options
    for option in options:
        if option not in names:
            raise unknown_name(f"option of strategy {name!r}:", option, names or ["(none)"])
    if budgets:
        if isinstance(space, Units):
            space.refuse_less(min(budgets))
        options = _keep_budgets(budgets, name, spec.budgets, options, evaluator)
        constraints = [*constraints, _loosest(budgets, evaluator)]
    if spec.gradients and not evaluator.offers("differentiable"):
        raise SearchError(
            f"strategy {name!r} needs an evaluator with differentiable(seed); "
            f"{type(evaluator).__name__} has none"
        )
    if spec.space == "needed":
        if space is None:
            raise SearchError(f"strategy {name!r} needs a space")
        try_space(space, evaluator.shape, budgets[0] if budgets else None)
    limits = {"constraints": constraints, "budgets": budgets}
    return spec.build(StrategyRequest(strategy, space, evaluator, seed, run, options, limits))


def spec_of(strategy: str | BaseSampler | Strategy) -> StrategySpec:
    """The spec of a strategy: the arguments that it takes.

    Raises:
        UnknownNameError: If there is none of that name; names the nearest.
    """
    if isinstance(strategy, BaseSampler):
        return StrategySpec(_build_sampler)
    if not isinstance(strategy, str):
        return StrategySpec(lambda search: search.strategy, space="optional")
    if _is_user_code(strategy):
        return OWN
    spec: StrategySpec | None = STRATEGIES.get(strategy) or load_part(
        "strategies", strategy, "strategy"
    )
    if spec is None:
        raise unknown_name("strategy", strategy, (*STRATEGIES, *offered("strategies")))
    return spec


def every_spec() -> dict[str, StrategySpec]:
    """Name -> spec of every strategy that is installed."""
    return {**STRATEGIES, **{name: spec_of(name) for name in offered("strategies")}}


def owners() -> dict[str, str]:
    """Prefix of options in `--set` -> the strategy that takes them, in words."""
    named = {OWN.prefix: "of your own (FILE.py:NAME)"}
    for name, spec in every_spec().items():
        if spec.prefix:
            named.setdefault(spec.prefix, name)
    for name, spec in every_spec().items():
        if spec.gated is not None and spec.prefix != GATES:
            named[GATES] += f", and to {name} by gates"
    return named


def _build_own(search: StrategyRequest) -> Strategy:
    """A user's class, or what a function returns."""
    return load_strategy(
        search.strategy,
        search.options,
        space=search.space,
        objectives=search.evaluator.objectives,
        seed=search.seed,
        **search.limits,
        evaluator=search.evaluator,
        run=search.run,
    )


def _build_sampler(search: StrategyRequest) -> Strategy:
    """One of Optuna's samplers."""
    return OptunaStrategy(
        search.space,
        search.evaluator.objectives,
        sampler=SAMPLERS[search.strategy] if isinstance(search.strategy, str) else search.strategy,
        seed=search.seed,
        name=strategy_name(search.strategy),
        shape=search.evaluator.shape,
        **search.limits,
    )


def _build_dam(search: StrategyRequest) -> Strategy:
    """DAM, with gates or switches of one's own."""
    options, evaluator, budgets = search.options, search.evaluator, search.limits["budgets"]
    config = aim_gates(one_shot_config(options, evaluator), budgets)
    gates, units, counts = _plain_gates(options, evaluator)
    if gates.get("structure") == "block" and hasattr(evaluator, "torch_device"):
        gates = {"block": grain_on(evaluator.torch_device), **gates}  # of where it trains
    if units is not None and options.get("merge_heads"):
        raise SearchError("switches choose whole masks for units: leave merge_heads out")
    if budgets and counts != find_cost(evaluator):
        raise SearchError(
            f"these gates count {counts}, and a budget counts {find_cost(evaluator)}: give "
            "strategy 'dam' switches of layers, or leave budget out"
        )
    if budgets and units is not None:
        units.refuse_less(min(budgets))
    parts = one_shot_parts(OneShot(gates, config), evaluator.shape, search.seed)
    bank = parts[1]  # wrong values are refused
    if bank.structure == "block":
        gates = {**gates, "block": bank.block}  # its default is this machine's, for all workers
    return DamStrategy(
        search.run,
        gates=gates,
        units=units,
        config=config,
        target=build_config(config).density,
        length=evaluator.shape.length,
        least=least_density(evaluator.shape.length, weights_of(evaluator.shape), bank.block),
        cut=Cut(
            options.get("densities"),
            merge_heads=bool(options.get("merge_heads", False)),
            within=bool(budgets),
            counts=counts,
        ),
    )


def _build_published(search: StrategyRequest) -> Strategy:
    """DAM as it was published."""
    config = one_shot_config(search.options, search.evaluator, preset=True)
    if taken := {"penalty", "preset"} & config.keys():
        raise SearchError(
            f"strategy {SPARSEBERT!r} has the penalties of the published table: drop "
            f"{', '.join(sorted(taken))}, or train one with strategy='dam'"
        )
    job = OneShot({"preset": SPARSEBERT}, {"preset": SPARSEBERT, **config})
    one_shot_parts(job, search.evaluator.shape, search.seed)  # refuses wrong values
    return PublishedDamStrategy(search.run, config=config)


def _build_prune(search: StrategyRequest) -> Strategy:
    """Edges cut by their first-order effects or, where budgets count work, words."""
    evaluator, within = search.evaluator, bool(search.limits["budgets"])
    cost, options = find_cost(evaluator), dict(search.options)
    if within and cost not in (DENSITY, WORK):
        raise SearchError(f"strategy 'prune' cuts pairs or words, and a budget counts {cost} here")
    if not evaluator.weights_frozen:
        raise SearchError(
            "strategy 'prune' measures a trained model, and here weights are trained under "
            "each mask: take an evaluator with adapt='none' or 'recover', or strategy='dam'"
        )
    words = within and cost == WORK
    if stray := sorted(options.keys() & ({"rounds", "per"} if words else {"by"})):
        other, needed = ("pairs", "budget") if words else ("words", "work")
        raise SearchError(f"{stray[0]} is for {other}, with {needed} as limit: leave it out")
    if words:
        works = options.pop("densities")
        return prune.prune_words(search.run, evaluator.shape, works=works, **options)
    return prune.prune_edges(search.run, evaluator.shape, within=within, **options)


GATES = "dam"  # prefix of the options `gates` and `config`
OWN = StrategySpec(_build_own, None, "optional", prefix="strategy")
STRATEGIES = {
    **dict.fromkeys(SAMPLERS, StrategySpec(_build_sampler)),
    "dam": StrategySpec(
        _build_dam,
        OPTIONS,
        "none",
        _as_switches,
        gradients=True,
        gated=lambda _: True,
        budgets="densities",
        prefix=GATES,
    ),
    SPARSEBERT: StrategySpec(
        _build_published,
        {"config": Mapping},
        "none",
        gradients=True,
        gated=lambda _: True,
        budgets=None,
        trials=16,
        prefix=GATES,
    ),
    prune.NAME: StrategySpec(
        _build_prune, prune.OPTIONS, "none", gradients=True, budgets="densities", prefix=prune.NAME
    ),
}


def _keep_budgets(
    budgets: Sequence[float],
    name: str,
    taken: str | None,
    options: Mapping[str, Any],
    evaluator: Evaluator,
) -> Mapping[str, Any]:
    """The options of a strategy that is to keep budgets, which are its option `taken`.

    Raises:
        SearchError: If it keeps none, or its options have budgets of their own or another cost.
        ValueError: If no mask costs as little; says the least.
    """
    if taken is None:
        raise SearchError(
            f"strategy {name!r} cuts its masks at the printed sparsities and keeps no budget: "
            "leave budget out, or take strategy 'dam'"
        )
    cost, low = find_cost(evaluator), window(0)
    if cost == WORK and taken and name != prune.NAME:
        raise SearchError(f"strategy {name!r} chooses pairs, work is of tokens: {WHOLE_TOKENS}")
    least = {DENSITY: effective_density(low, evaluator.shape), **evaluator.measures_of(low)}[cost]
    if min(budgets) < least * (1 - SLACK):
        raise ValueError(
            f"a budget is at least what the diagonal costs, {least:.4g} ({cost}); got "
            f"{min(budgets):g}: raise it"
        )
    if not taken:
        return options
    if options.get(taken):
        raise SearchError(f"budgets are {taken} of strategy {name!r}: give one of the two")
    if options.get("cost", cost) != cost:
        raise SearchError(f"a budget counts {cost} here: drop cost={options['cost']!r}")
    return {**options, taken: list(budgets)}


def _loosest(budgets: Sequence[float], evaluator: Evaluator) -> Constraint:
    """The constraint that all masks within budgets keep, for samplers to learn from."""
    cost = find_cost(evaluator)
    if cost == DENSITY:
        return Constraint("effective_sparsity", ">=", 1 - max(budgets))
    return Constraint(cost, "<=", max(budgets), measured=True)


def _plain_gates(
    options: Mapping[str, Any], evaluator: Evaluator
) -> tuple[dict[str, Any], Units | None, str]:
    """Arguments of `Gates` for a job, masks as texts; the units, where they are switches; and what
    their density counts (`find_cost`).

    Raises:
        ValueError: If switches have fewer than two masks, or some that do not rise.
        MaskSearchError: If an option is no mask, or does not fit, or the costs do not add up.
    """
    gates, cost = dict(options.get("gates") or {}), options.get("cost")
    if gates.get("structure") != "switch":
        if cost is not None:
            raise SearchError(f"cost={cost!r} is what switches cost: give units, or leave it out")
        return gates, None, DENSITY
    levels = read_levels(gates.get("levels") or ())
    if gates.get("unit") == "kv_head":
        gates.setdefault("kv_heads", evaluator.kv_head_count)
    shape = replace(evaluator.shape, layers=gates.get("layers", evaluator.shape.layers))
    units = Units(shape, levels, gates.get("unit", "layer"), gates.get("kv_heads"))
    if "costs" in gates:
        units = replace(units, costs=gates["costs"])
        return {**gates, "levels": write_levels(levels)}, units, DENSITY
    units = with_costs(units, evaluator, cost)
    counts = DENSITY if units.costs is None else find_cost(evaluator, cost)
    costs = {} if units.costs is None else {"costs": [list(each) for each in units.costs]}
    return {**gates, "levels": write_levels(levels), **costs}, units, counts


def one_shot_config(
    options: Mapping[str, Any], evaluator: Evaluator, *, preset: bool = False
) -> dict[str, Any]:
    """Arguments of a `DamConfig` for a job: whether weights are frozen and, unless a preset says
    it, the rate of those that are not.

    Raises:
        SearchError: If frozen weights are to be trained.
    """
    config = dict(options.get("config") or {})
    if evaluator.weights_frozen:
        if config.get("train") == "both":
            raise SearchError(
                "train='both' trains weights and gates, and with adapt='none' or 'recover' the "
                "weights are frozen: leave train out, or give adapt='train'"
            )
        return {**config, "train": "gates"}
    rate = evaluator.weight_lr
    return config if rate is None or preset or "preset" in config else {"lr": rate, **config}


def aim_gates(config: Mapping[str, Any], budgets: Sequence[float]) -> dict[str, Any]:
    """Arguments of a `DamConfig` whose target is the smallest budget, where they say none; a
    budget of 1, which asks for nothing, is no target."""
    least = min(budgets, default=1)
    return {"density": least, **config} if least < 1 else dict(config)


def _is_user_code(strategy: str) -> bool:
    """Whether a strategy is named as `file.py:Name`."""
    return ".py:" in strategy


def strategy_name(strategy: str | BaseSampler | Strategy) -> str:
    """The name under which a strategy's trials are shown."""
    if not isinstance(strategy, str):
        return type(strategy).__name__
    return strategy.rpartition(":")[2] if _is_user_code(strategy) else strategy


def strategy_facts(
    strategy: str | BaseSampler | Strategy, options: Mapping[str, Any]
) -> dict[str, str]:
    """The facts that must not change between two searches on one run folder.

    A strategy of a user's file is known by the file's text, wherever the file lies; a file of
    gates likewise.
    """
    facts = {"strategy": strategy_name(strategy)}
    if isinstance(strategy, str) and _is_user_code(strategy):
        path = Path(strategy.rpartition(":")[0])
        text = path.read_bytes() if path.is_file() else b""
        facts["strategy_source"] = hashlib.sha256(text).hexdigest()[:16]
    file = options.get(spec_of(strategy).file)
    if isinstance(file, str | Path) and Path(file).is_file():
        facts["strategy_source"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return facts | {"strategy_options": json.dumps(dict(options), sort_keys=True, default=str)}
