"""From the name of a strategy, a sampler or an object to the strategy of a search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler

from masksearch.analysis.pareto import SLACK
from masksearch.contracts import (
    Evaluator,
    OneShot,
    Strategy,
)
from masksearch.errors import SearchError, unknown_name
from masksearch.gates.config import build_config, one_shot_parts
from masksearch.gates.discretise import least_density, weights_of
from masksearch.gates.units import Units, read_levels, write_levels
from masksearch.masks import window
from masksearch.masks.measure import effective_density
from masksearch.strategies.allocate import (
    DENSITY,
    build_allocate,
    build_units,
    find_cost,
    with_costs,
)
from masksearch.strategies.allocate import NAME as ALLOCATE
from masksearch.strategies.allocate import OPTIONS as ALLOCATE_OPTIONS
from masksearch.strategies.dam import SPARSEBERT, DamStrategy, PublishedDamStrategy
from masksearch.strategies.evolution import EvolutionStrategy
from masksearch.strategies.prune import NAME as PRUNE
from masksearch.strategies.prune import OPTIONS as PRUNE_OPTIONS
from masksearch.strategies.prune import PruneStrategy
from masksearch.strategies.samplers import SAMPLERS, OptunaStrategy, Space, try_space
from masksearch.strategies.supernet import NAMES as SHARED
from masksearch.strategies.supernet import OPTIONS as SHARED_OPTIONS
from masksearch.strategies.supernet import SharedStrategy
from masksearch.study.records import Constraint
from masksearch.user_code import load_strategy

OPTIONS = {
    ALLOCATE: ALLOCATE_OPTIONS,
    "dam": ("gates", "config", "densities", "merge_heads", "cost"),
    SPARSEBERT: ("config",),
    PRUNE: PRUNE_OPTIONS,
    "evolution": ("population", "sample"),
    **dict.fromkeys(SHARED, SHARED_OPTIONS),
}
STRATEGIES = (*SAMPLERS, "evolution", ALLOCATE, "dam", SPARSEBERT, PRUNE, *SHARED)


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
    if budgets:
        options = keep_budgets(budgets, strategy_name(strategy), options, space, evaluator)
        constraints = [*constraints, loosest(budgets, evaluator)]
    limits: dict[str, Any] = {"constraints": constraints, "budgets": budgets}
    if isinstance(strategy, str) and is_user_code(strategy):
        return load_strategy(
            strategy,
            options,
            space=space,
            objectives=evaluator.objectives,
            seed=seed,
            **limits,
            evaluator=evaluator,
            run=run,
        )
    name = strategy_name(strategy)
    known = OPTIONS.get(name, ()) if isinstance(strategy, str) else ()
    for option in options:
        if option not in known:
            raise unknown_name(f"option of strategy {name!r}:", option, known or ["(none)"])
    if not isinstance(strategy, str | BaseSampler):
        return strategy
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise unknown_name("strategy", strategy, STRATEGIES)
    if name in ("dam", SPARSEBERT, PRUNE, *SHARED) and not evaluator.offers("differentiable"):
        raise SearchError(
            f"strategy {name!r} needs an evaluator with differentiable(seed); "
            f"{type(evaluator).__name__} has none"
        )
    if strategy == "dam":
        config = one_shot_config(options, evaluator)
        gates, units, counts = plain_gates(options, evaluator)
        if units is not None and options.get("merge_heads"):
            raise SearchError("switches choose whole masks for units: leave merge_heads out")
        if budgets and counts != find_cost(evaluator):
            raise SearchError(
                f"these gates count {counts}, and a budget counts {find_cost(evaluator)}: give "
                "strategy 'dam' switches of layers, or leave budget out"
            )
        if budgets and units is not None:
            units.refuse_less(min(budgets))
        one_shot_parts(OneShot(gates, config), evaluator.shape, seed)  # refuses wrong values now
        return DamStrategy(
            run,
            gates=gates,
            units=units,
            counts=counts,
            config=config,
            target=build_config(config).density,
            length=evaluator.shape.length,
            least=least_density(evaluator.shape.length, weights_of(evaluator.shape)),
            densities=options.get("densities"),
            merge_heads=bool(options.get("merge_heads", False)),
            within=bool(budgets),
        )
    if strategy == SPARSEBERT:
        config = one_shot_config(options, evaluator, preset=True)
        if taken := {"penalty", "preset"} & config.keys():
            raise SearchError(
                f"strategy {SPARSEBERT!r} has the penalties of the published table: drop "
                f"{', '.join(sorted(taken))}, or train one with strategy='dam'"
            )
        job = OneShot({"preset": SPARSEBERT}, {"preset": SPARSEBERT, **config})
        one_shot_parts(job, evaluator.shape, seed)  # refuses wrong values now
        return PublishedDamStrategy(run, config=config)
    if strategy == PRUNE:
        if not evaluator.weights_frozen:
            raise SearchError(
                "strategy 'prune' measures a trained model, and here weights are trained under "
                "each mask: take an evaluator with adapt='none' or 'recover', or strategy='dam'"
            )
        return PruneStrategy(run, evaluator.shape, within=bool(budgets), **options)
    if strategy == ALLOCATE:
        if space is not None:
            raise SearchError(
                "strategy 'allocate' takes no space: its masks are those of its units; give None"
            )
        if options.get("method") == "gates":
            if not evaluator.offers("differentiable"):
                raise SearchError(
                    "method='gates' needs an evaluator with differentiable(seed); "
                    f"{type(evaluator).__name__} has none: take 'restore', 'ablate' or 'greedy'"
                )
            options = {**options, "config": one_shot_config(options, evaluator)}
        units = build_units(options, evaluator.shape, evaluator.kv_head_count)
        return build_allocate(options, units, evaluator, run)
    if space is None:
        raise SearchError(f"strategy {name!r} needs a space")
    try_space(space, evaluator.shape, budgets[0] if budgets else None)
    if strategy == "evolution":
        return EvolutionStrategy(space, evaluator.objectives, seed=seed, **limits, **options)
    if isinstance(strategy, str) and strategy in SHARED:
        return SharedStrategy(run, space, name=strategy, options=options, **limits)
    return OptunaStrategy(
        space,
        evaluator.objectives,
        sampler=SAMPLERS[strategy] if isinstance(strategy, str) else strategy,
        seed=seed,
        name=name,
        **limits,
    )


def keep_budgets(
    budgets: Sequence[float],
    name: str,
    options: Mapping[str, Any],
    space: Space | None,
    evaluator: Evaluator,
) -> Mapping[str, Any]:
    """The options of a strategy that is to keep budgets.

    Raises:
        SearchError: If it cannot, or its options have budgets of their own.
        ValueError: If no mask, or none of a space of units, costs as little; says the least.
    """
    if name == SPARSEBERT:
        raise SearchError(
            f"strategy {SPARSEBERT!r} cuts its masks at the printed sparsities and keeps no "
            "budget: leave budget out, or take strategy 'dam'"
        )
    if isinstance(space, Units):
        space.refuse_less(min(budgets))
    cost, own = find_cost(evaluator), window(0)
    least = {DENSITY: effective_density(own, evaluator.shape), **evaluator.measures_of(own)}[cost]
    if min(budgets) < least * (1 - SLACK):
        raise ValueError(
            f"a budget is at least what the diagonal costs, {least:.4g} ({cost}); got "
            f"{min(budgets):g}: raise it"
        )
    if name == PRUNE and cost != DENSITY:
        raise SearchError(f"strategy {PRUNE!r} cuts pairs, and a budget counts {cost} here")
    taken = {"dam": "densities", PRUNE: "densities", ALLOCATE: "budgets"}.get(name)
    if taken is None:
        return options
    if options.get(taken):
        raise SearchError(
            f"a budget is what {taken} of strategy {name!r} are: give one of the two"
        )
    if options.get("cost", cost) != cost:
        raise SearchError(f"a budget counts {cost} here: drop cost={options['cost']!r}")
    return {**options, taken: list(budgets)}


def loosest(budgets: Sequence[float], evaluator: Evaluator) -> Constraint:
    """What all masks within budgets keep, for samplers to learn from."""
    cost = find_cost(evaluator)
    if cost == DENSITY:
        return Constraint("effective_sparsity", ">=", 1 - max(budgets))
    return Constraint(cost, "<=", max(budgets), measured=True)


def plain_gates(
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
    own = replace(evaluator.shape, layers=gates.get("layers", evaluator.shape.layers))
    units = Units(own, levels, gates.get("unit", "layer"), gates.get("kv_heads"))
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


def is_user_code(strategy: str) -> bool:
    """Whether a strategy is named as `file.py:Name`."""
    return ".py:" in strategy


def strategy_name(strategy: str | BaseSampler | Strategy) -> str:
    """The name under which a strategy's trials are shown."""
    if not isinstance(strategy, str):
        return type(strategy).__name__
    return strategy.rpartition(":")[2] if is_user_code(strategy) else strategy


def strategy_facts(
    strategy: str | BaseSampler | Strategy, options: Mapping[str, Any]
) -> dict[str, str]:
    """What must not change between two searches on one run folder.

    A strategy of a user's file is known by the file's text, wherever the file lies; a file of
    gates likewise.
    """
    facts = {"strategy": strategy_name(strategy)}
    if isinstance(strategy, str) and is_user_code(strategy):
        path = Path(strategy.rpartition(":")[0])
        text = path.read_bytes() if path.is_file() else b""
        facts["strategy_source"] = hashlib.sha256(text).hexdigest()[:16]
    method = options.get("method")
    if strategy == ALLOCATE and isinstance(method, str | Path) and Path(method).is_file():
        facts["strategy_source"] = hashlib.sha256(Path(method).read_bytes()).hexdigest()[:16]
    return facts | {"strategy_options": json.dumps(dict(options), sort_keys=True, default=str)}
