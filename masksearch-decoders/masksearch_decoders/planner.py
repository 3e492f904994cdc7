"""Which layers or heads of a trained decoder keep full attention, within a budget of its cache.

plan = allocate("my-llama", "books/", budget=.25, local=["window(63)", "window(255)"])
attach(model, plan.mask)                    # or to_native(model, plan.mask)
allocate("my-llama", "books/", budget=.25, length=4096, sinks="tune", out="served",
         serve="llama.cpp", serving=Serving(length=8192, ubatch=64))
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

import torch
from rich.text import Text
from torch import Tensor

from masksearch import masks
from masksearch.analysis.pareto import describe_none_within, ranked
from masksearch.analysis.stats import estimate
from masksearch.attention.attach import attach, detach
from masksearch.contracts import NLL_INCREASE, Executor, Record
from masksearch.driver import Study, search
from masksearch.errors import DataError, NativeError, SearchError, check_name, warn
from masksearch.files import object_in
from masksearch.gates.units import Unit, read_levels, write_levels
from masksearch.masks.baselines import default_local, widest_window
from masksearch.masks.core import Mask
from masksearch.masks.measure import ROUNDING
from masksearch.strategies.build import StrategyRequest
from masksearch.study.console import Display
from masksearch.study.records import read_budgets
from masksearch.study.status import clock
from masksearch.tasks.splits import FEW
from masksearch.training.loop import find_device
from masksearch.training.parts import Precision
from masksearch_decoders.allocation import AllocateStrategy, build_allocation
from masksearch_decoders.cache.kv_cache import kv_bytes
from masksearch_decoders.causal import CausalEvaluator
from masksearch_decoders.decoders import NextTokenModel
from masksearch_decoders.engine import Serving
from masksearch_decoders.engines import ENGINES
from masksearch_decoders.engines.gguf import begin_file
from masksearch_decoders.folder import SERVED, write_folder
from masksearch_decoders.native import from_native, native_config, to_native, with_sink_logits
from masksearch_decoders.next_tokens import row_scores, score_tokens
from masksearch_decoders.plan import Plan, describe_units
from masksearch_decoders.served import EngineEvaluator
from masksearch_decoders.sinks import Sinks, keeps_sinks, without_sinks
from masksearch_decoders.tasks.next_token import NextTokenText

LEVEL = 0.95  # of intervals over documents
SHARES = (0.1, 0.2, 0.4, 0.8)  # of a text, held out where less has too few documents
WRITTEN = torch.float16  # the weights of a folder that is served
PLAN = "plan.json"  # in the run folder, of one budget
EXISTS = "{} exists; a folder is written once: remove it, or name another"


def allocate(
    model: str | Path,
    text: str | Path,
    budget: float = 0.25,
    *,
    unit: Unit = "layer",
    local: Mask | str | Sequence[Mask | str] | None = None,
    method: str | None = None,
    tries: int | None = None,
    length: int = 1024,
    sequences: int = 64,
    held_out: str | Path | None = None,
    tasks: Sequence[str] = (),
    task_rows: int = 16,
    serve: str | None = None,
    serving: Serving | None = None,
    sinks: Sinks | None = None,
    out: str | Path | None = None,
    trials: int | None = None,
    check: bool = True,
    run: str | Path = "runs/allocate",
    device: str = "auto",
    precision: Precision | None = None,
    executor: Executor | None = None,
    progress: Literal["auto"] | None = "auto",
) -> Plan:
    """Finds which layers or heads of a decoder keep full attention. At most gates are trained.

    The plainest rival of every plan, the widest window in all layers that is within the budget, is
    judged on the text of the search first. Where nothing is better there, it is the plan; and
    where it is better than what was found on documents that the search has not seen, by an
    interval without zero (of tasks there is none).

    The search goes on where it was stopped, in its run folder, which also gets the plan and,
    where the model's own configuration can name the mask, that as `native.json`.

    Args:
        model: A decoder: a folder, a name on the Hugging Face Hub, or a GGUF file.
        text: Text to measure losses on: a file, a folder of `.txt` files, or `hf:OWNER/NAME`;
            whole documents, about 48: fewer than 16 that judge show no plan to be better.
        budget: Largest share of the bytes of the dense cache of keys and values, in (0, 1].
        unit: What has full attention or not: layer, kv_head or head. Only layers free memory in
            the caches that exist.
        local: The mask of the other units, or several (repeatable); None = 4 sinks and a window of
            an eighth of the length. Of several each keeps all that the one before keeps, and a
            unit has one of them, that of the rival, or full attention. With `serve` all units that
            are not full have the same one, as engines have one window.
        method: `exchange` (from the widest window in all units, move bytes from one to another),
            `greedy` (raise the best unit, round by round), or the best sum of scores within
            the budget, which misses more: `restore` (a unit alone full), `ablate` (it alone
            local), `gates` (switches, trained on frozen weights), or a file of gates. None = of
            several local masks exchange, of one greedy.
        tries: Units that greedy tries in a round; None = all.
        length: Tokens of a sequence, and of the cache that is counted: as many as will be served.
            Where the widest window is as long no plan can win.
        sequences: Held-out sequences that are judged, at most.
        held_out: Text that plans are judged on, half of it in the search; None = the valid.txt of
            a folder, else as much of the end of `text` (5 to 80 %) as it takes for 16 documents
            that the search does not see.
        tasks: Tasks of long context, such as `niah_multikey_1` and `vt` (repeatable): masks are
            then searched by the most that they add to the loss of the text or of a group of
            tasks. Names: `masksearch_decoders.tasks.long_context.TASKS`.
        task_rows: Rows of each task. Sixteen are quick and choose by luck where masks are near.
        serve: The engine that will serve it, `transformers`, `vllm`, `sglang`, `llama.cpp` or
            `tensorrt-llm`: the budget counts what that engine reserves (of SGLang what the mask
            needs); None = the bytes that the mask needs.
        serving: How the engine is run, and the length that is counted: `Serving(length=32768)`, on
            the command line `{"length": 32768}`; None = its defaults.
        sinks: What stands in for sinks beside a window in the folder: `tune` (trained
            logits), `calibrate` (measured ones) or `none`; None = such masks are refused. See
            `to_native`.
        out: A new folder that the engine opens, with SERVING.md: its command, the bytes and losses
            to expect. Of one budget; None = no folder.
        trials: Masks to judge, at most; None = as many as the method needs.
        check: Judge the plan, dense attention, and the widest window in all layers that is within
            the budget, on documents that the search has not seen.
        run: Folder of the search.
        device: `"cpu"`, `"cuda"`, .., or `"auto"`: the GPU where there is one. Sinks are measured
            and tuned there too.
        precision: Of what is computed, and of the weights in memory: `"float32"` or
            `"bfloat16"`; None = bfloat16 on a GPU that computes in it, else float32.
        executor: Where masks of the search are judged; None = one after the other. With
            `Local(slots=4, gpus=1)` the units of a round are scored on four GPUs at a time.
        progress: As of `search`.

    Returns:
        The plan; `found` says its bytes, and its losses with their interval.

    Raises:
        ValueError: If the budget is no share, or less than the local mask in all units costs; or
            local masks do not rise; or this machine has no such device, or its GPU lacks the
            precision.
        NativeError: If the engine cannot serve such masks of this model, or `out` exists; that is
            said before anything is judged.
        SearchError: If bytes do not add up over the units, or no mask within the budget was
            judged.
        DataError: If the text or the model cannot be read, or the device has no room for it.
    """
    named = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    plans = find_plans(
        DecoderOnText(
            model, text, length, sequences, held_out, device, precision, named, task_rows
        ),
        CacheBudget([budget], unit, local, method, tries, trials),
        Delivery(
            serve, serving, sinks, None if out is None else Path(out).expanduser().absolute()
        ),
        check=check,
        run=Path(run).expanduser().absolute(),
        executor=executor,
        progress=progress,
    )
    return plans[budget]


@dataclass(frozen=True)
class DecoderOnText:
    """A decoder, and the text that masks on it are judged by; fields are as of `allocate`."""

    model: str | Path
    text: str | Path
    length: int
    sequences: int
    held_out: str | Path | None
    device: str
    precision: Precision | None
    tasks: tuple[str, ...] = ()
    task_rows: int = 16

    def __post_init__(self) -> None:
        find_device(self.device)
        if not isinstance(self.model, str | Path):
            raise TypeError(
                "model is a folder, a name on the Hub or a GGUF file, got "
                f"{type(self.model).__name__}: save it with its tokenizer (save_pretrained), and "
                "give the folder"
            )


@dataclass(frozen=True)
class CacheBudget:
    """The most that plans cost, and how full units are chosen within that; fields are as of
    `allocate`, for several budgets."""

    budgets: Sequence[float]
    unit: Unit
    local: Mask | str | Sequence[Mask | str] | None
    method: str | None
    tries: int | None
    trials: int | None


@dataclass(frozen=True)
class Delivery:
    """The engine that serves a plan, and the folder that it opens; fields are as of `allocate`."""

    serve: str | None
    serving: Serving | None
    sinks: Sinks | None
    out: Path | None

    def __post_init__(self) -> None:
        if self.serve is not None:
            check_name("serve", self.serve, ENGINES)
        if self.sinks is not None:
            check_name("sinks", self.sinks, get_args(Sinks))

    @property
    def cache_layout(self) -> str:
        """Whose bytes the budget counts."""
        return "mask" if self.serve is None else ENGINES[self.serve].cache_layout


def plan_path(run: Path, budget: float, budgets: Collection[float]) -> Path:
    """The file of a run folder that holds the plan of one of several budgets."""
    return run / (PLAN if len(budgets) == 1 else f"plan-{budget:g}.json")


def find_plans(
    decoder: DecoderOnText,
    within: CacheBudget,
    delivery: Delivery,
    *,
    check: bool,
    run: Path,
    executor: Executor | None,
    progress: Literal["auto"] | None,
) -> dict[float, Plan]:
    """A plan for each budget, by one search; see `allocate`. They are in the run folder as well:
    `plan.json`, of several budgets `plan-0.25.json` and so on."""
    limits = sorted(read_budgets(within.budgets))
    compares = check or delivery.out is not None
    evaluator = build_decoder_evaluator(decoder, within.unit, delivery, compares)
    local = _read_local(within.local, decoder.length)
    _refuse_floor(evaluator, limits[0])
    if delivery.out is not None or delivery.sinks is not None:
        check_folder(evaluator, local, delivery, limits, run)
    rivals = {limit: _plainest_rival(evaluator, local[0], limit) for limit in limits}
    if compares:
        _warn_of_dense_rivals(rivals, decoder.length, delivery.serving)
    uniform = {
        f"one window within {n:g}": m for n, m in rivals.items() if serves(m, evaluator, delivery)
    }
    method = within.method or ("exchange" if len(local) > 1 else "greedy")
    if len(local) > 1:
        local = _insert_levels(local, uniform.values(), decoder.length)
    options: dict[str, Any] = {
        "unit": within.unit,
        "levels": write_levels([*local, masks.full()]),
        "method": method,
        "budgets": limits,
    }
    options |= {} if within.tries is None else {"tries": within.tries}
    options |= {"one_window": True} if delivery.serve and len(local) > 1 else {}
    strategy, study = search_masks(
        evaluator, options, uniform, within.trials, run, executor, progress
    )
    chosen, plainest = dict[float, Record](), dict[float, Record | None]()
    for limit in limits:
        inside = ranked(study.records(), study.objectives, budget=limit, baselines=True)
        if not inside:
            tried = [record for record in study.records() if record.role != "baseline"]
            raise SearchError(describe_none_within(tried, study.objectives, limit))
        chosen[limit] = inside[0]
        plainest[limit] = next((each for each in inside if each.mask == rivals[limit]), None)
    unseen = Unseen(evaluator.evaluator) if compares else None
    plans = {}
    for limit, record in chosen.items():
        path = plan_path(run, limit, chosen)
        plan = _make_plan(evaluator.evaluator, strategy, record, str(decoder.model))
        if unseen:
            unseen.forget()
        losses = unseen and unseen.compare(masked=plan.mask)
        rival, better = unseen and unseen.compare_rival(rivals[limit], plan.mask), plainest[limit]
        if unseen and rival and better and rival.get("high", 0.0) < 0 and not decoder.tasks:
            rival |= {"is_plan": True, "searched": describe_units(plan)}
            record, plan = (
                better,
                _make_plan(evaluator.evaluator, strategy, better, str(decoder.model)),
            )
            losses = unseen.compare(masked=plan.mask)
        facts: dict[str, Any] = {
            "budget": {
                "cost": evaluator.cost,
                "limit": limit,
                "cache_layout": delivery.cache_layout,
            },
            "length": evaluator.length,
            "scores": {"method": method, "of_units": strategy.importance},
            "cache": dict(evaluator.measures_of(plan.mask)),
            "nll": {"search": record.values["nll"], "unseen": losses},
            "lost": {
                name.removeprefix(f"{NLL_INCREASE}/"): value
                for name, value in record.values.items()
                if name.startswith(f"{NLL_INCREASE}/")
            },
            "rival": rival,
            "tasks": unseen and unseen.compare_tasks(plan=plan.mask, rival=rivals[limit]),
            "native": _describe_native(evaluator.evaluator, plan, delivery.serve),
            "trial": record.number,
        }
        plans[limit] = replace(plan, found=facts)
        plans[limit].save(path)
        if delivery.out is not None and unseen is not None:
            facts["served"] = _write_served(evaluator, unseen, plans[limit], delivery, run)
            plans[limit].save(path)
    return plans


def build_decoder_evaluator(
    decoder: DecoderOnText, unit: Unit, delivery: Delivery, compares: bool = True
) -> EngineEvaluator:
    """The evaluator that judges masks on a decoder, and counts their bytes as its engine does.

    Where plans are compared on unseen documents, as much of the text is held out as it takes for
    16 of them, if it has so many."""
    layout = delivery.cache_layout
    evaluator = CausalEvaluator(
        decoder.text,
        weights=decoder.model,
        length=decoder.length,
        held_out=decoder.held_out,
        held_out_sequences=decoder.sequences,
        device=decoder.device,
        precision=decoder.precision,
        adapt="none",
        tasks=decoder.tasks,
        task_rows=decoder.task_rows,
        cost="kv_bytes" if unit == "layer" or layout in ENGINES else "kv_bytes_per_head",
    )
    for share in (None, *SHARES) if compares and decoder.held_out is None else ():
        other = replace(evaluator, held_out=share)
        task = other.task()
        if not isinstance(task, NextTokenText) or len(task.train) < FEW:
            break  # too little is left for sinks and gates
        if task.judging(decoder.sequences) >= FEW:
            evaluator = other
            break
    return EngineEvaluator(evaluator, layout, delivery.serving or Serving())


def _read_local(local: Mask | str | Sequence[Mask | str] | None, length: int) -> list[Mask]:
    """The masks of units that are not full, the narrowest first; see `allocate`.

    Raises:
        ValueError: If one of them does not keep more than the one before, and all of that, and
            less than everything.
    """
    each = [local or default_local(length)] if isinstance(local, str | Mask | None) else local
    levels = [*read_levels(each)]
    if len(levels) > 1 and levels[-1] == masks.full():
        levels.pop()
    for low, high in pairwise(levels):
        kept = [1 - mask.sparsity(length, causal=True) for mask in (low, high, low | high)]
        if not kept[0] < kept[1] == kept[2] < 1:
            raise ValueError(
                "each local mask keeps more than the one before, and all that it keeps; got "
                f"{high} ({kept[1]:.4g} of the pairs of {length} tokens) after {low} "
                f"({kept[0]:.4g}): "
                "order them from narrow to wide, and drop what is as wide as the text"
            )
    return levels or [default_local(length)]


def _insert_levels(levels: Sequence[Mask], others: Iterable[Mask], length: int) -> list[Mask]:
    """The levels, and those of the other masks that keep more than the first level and less than
    full attention, sorted by the pairs that they keep."""
    kept = {mask.sparsity(length, causal=True): mask for mask in [*others, *levels]}
    least = levels[0].sparsity(length, causal=True)
    return [kept[sparsity] for sparsity in sorted(kept, reverse=True) if 0 < sparsity <= least]


def search_masks(
    evaluator: EngineEvaluator,
    options: Mapping[str, Any],
    uniform: Mapping[str, Mask],
    trials: int | None,
    run: Path,
    executor: Executor | None,
    progress: Literal["auto"] | None,
) -> tuple[AllocateStrategy, Study]:
    """Searches the masks of a plan, after those of one window; the strategy then knows the scores
    of its units."""
    # refuses budgets that nothing keeps
    strategy = build_allocation(StrategyRequest("allocate", None, evaluator, 0, run, options, {}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the strategy has no more masks")
        if trials is None:
            warnings.filterwarnings("ignore", message="strategy 'allocate' judges")
            trials = strategy.most_trials
        if progress:
            _say_plan(evaluator.evaluator, trials + len(uniform))
        study = search(
            None,
            evaluator,
            run=run,
            trials=trials,
            strategy="allocate",
            strategy_options=options,
            baselines=uniform,
            executor=executor,
            progress=progress,
        )
    for record in study.records():
        if record.role != "baseline":
            strategy.tell(record)
    strategy.ask()  # the scores are known once the masks that they come from are
    return strategy, study


def _say_plan(evaluator: CausalEvaluator, most: int) -> None:
    """Says how many masks will be judged, and when the first one is likely to be, which dense
    attention comes before: one sequence is timed."""
    model, tokens, began = (
        evaluator.dense_decoder(0).model,
        evaluator.rows.tokens,
        time.monotonic(),
    )
    score_tokens(model, tokens[:1], precision=evaluator.precision)
    rows = sum(len(each.tokens) for each in (evaluator.rows, *evaluator.prompts.values()))
    first = clock(2 * rows * (time.monotonic() - began))
    Display(Text).print(
        f"allocate: at most {most} masks, each on {rows} sequences of {tokens.shape[1]:,} "
        f"tokens; the first in about {first}"
    )


def _warn_of_dense_rivals(
    rivals: Mapping[float, Mask | None], length: int, serving: Serving | None
) -> None:
    """Warns where the rival of a budget is dense attention on texts as long as the judged ones."""
    for limit, rival in rivals.items():
        if rival is not None and limit < 1 and rival.sparsity(length, causal=True) == 0:
            warn(
                f"on texts of {length} tokens {rival} in every layer is dense attention, and it "
                f"is within the budget {limit:g}: no mask can be shown to be better; give length= "
                f"(--length), up to {serving and serving.length}"
            )


def _plainest_rival(evaluator: EngineEvaluator, local: Mask, limit: float) -> Mask | None:
    """The widest window within a budget, in every layer: a searched mask has to beat it. None
    where nothing is within the budget, or an engine refuses the mask."""
    try:
        cost = evaluator.cost
        return widest_window(
            limit, lambda m: evaluator.measures_of(m)[cost], evaluator.length, local
        )
    except NativeError:
        return None


def _refuse_floor(evaluator: EngineEvaluator, budget: float) -> None:
    """Raises ValueError where an engine holds more than a budget of the narrowest window, which no
    allocation changes; names the floor, and what moves it."""
    layout, serving = evaluator.cache_layout, evaluator.serving
    setting = ENGINES[layout].floor if layout in ENGINES else ""
    if not setting:
        return
    floor = evaluator.measures_of(masks.window(1))[evaluator.cost]
    if floor > min(budget * (1 + ROUNDING), 1 - ROUNDING):
        share = "everything" if floor > 1 - ROUNDING else f"{floor:.4g} of its dense cache or more"
        raise ValueError(
            f"{layout} keeps {share} under any window at {evaluator.length:,} positions with "
            f"{setting}={getattr(serving, setting):,}, got budget={budget:g}: give a longer "
            f"length or a smaller {setting} in serving= (--serving "
            f"""'{{"length": .., "{setting}": ..}}')"""
        )


class Unseen:
    """Judges models and masks on documents that the search has not seen.

    Warns where fewer than 16 documents judge: then nothing is shown to be better. Where the
    held-out text has no more, pieces of them, which are alike, stand in their place.

    Args:
        evaluator: Of the search.
    """

    def __init__(self, evaluator: CausalEvaluator) -> None:
        self.evaluator = evaluator.on("holdout")
        text, rows = evaluator.task(), self.evaluator.rows
        self.documents = len({*rows.documents.tolist()})
        if isinstance(text, NextTokenText):
            self.documents = len(text.begins.documents)
        judging = len({*rows.documents.tolist()})
        if self.documents < FEW or judging < FEW:
            problem = f"{judging} of {self.documents} held-out documents judge a plan"
            if self.documents < FEW:
                problem = (
                    f"the held-out text has {self.documents} documents, so its pieces are judged "
                    "in their place: they are alike, and the interval is too short"
                )
            warn(
                f"{problem}; fewer than {FEW} show no plan to be better: give whole documents, "
                f"about {3 * FEW}, half of which the search does not see"
            )
        self.nll = {"dense": self.nll_of(masks.full())}

    def nll_of(self, mask: Mask, model: NextTokenModel | None = None) -> Tensor:
        """Nats of each token `[rows, length]`, 0 in front; of a model, else of the checkpoint."""
        model = model or self.evaluator.dense_decoder(0).model
        attach(model, mask)  # what is local is linear then
        try:
            return self.evaluator.score(model).nll
        finally:
            detach(model)

    def compare(self, **forms: Mask | NextTokenModel) -> dict[str, Any]:
        """Losses of dense attention and of what is given by name, and the last one's difference
        from dense, with its interval over documents."""
        for name, each in forms.items():
            if isinstance(each, Mask):
                self.nll[name] = self.nll_of(each)
            else:
                self.nll[name] = self.nll_of(from_native(each.model.config), each)
        return self.differences([*forms][-1], "dense")

    def forget(self) -> None:
        """Forgets all losses but those of dense attention: the next ones are of another budget."""
        self.nll = {"dense": self.nll["dense"]}

    def compare_rival(self, rival: Mask | None, plan: Mask) -> dict[str, Any] | None:
        """The loss of a mask, and its difference from the plan's, which was judged just before."""
        if rival is None:
            return None
        if rival == plan:
            return {"mask": str(rival), "is_plan": True}
        self.compare(rival=rival)
        return {"mask": str(rival)} | self.differences("rival", "masked")

    def compare_tasks(self, **forms: Mask | None) -> dict[str, dict[str, float]]:
        """Values of the tasks, if any, without a mask and under those that are given by name."""
        found, shared = dict[str, dict[str, float]](), self.evaluator.dense_decoder(0)
        if not self.evaluator.tasks:
            return found
        for name, mask in {"dense": masks.full(), **forms}.items():
            if mask is not None:
                with shared.under(mask) as model:
                    found[name] = self.evaluator.score_tasks(model)
        return found

    def differences(self, name: str, base: str) -> dict[str, Any]:
        """All losses, and the difference of two."""
        scores = {
            n: row_scores(x, self.evaluator.rows).scores["text"] for n, x in self.nll.items()
        }
        lost = estimate((scores[name] - scores[base]).tolist(), LEVEL)
        losses: dict[str, Any] = {name: float(each.mean()) for name, each in scores.items()}
        losses |= {"difference": lost.value, "documents": len(scores["dense"])}
        if self.documents < FEW:
            losses["pieces_of"] = self.documents
        if math.isfinite(lost.low):
            losses |= {"low": lost.low, "high": lost.high}
        return losses


def _make_plan(
    evaluator: CausalEvaluator, strategy: AllocateStrategy, record: Record, model: str
) -> Plan:
    """The plan of a trial."""
    start, mask, units = evaluator.start, record.mask, strategy.units
    assert start is not None
    assert mask is not None
    name = Path(model).name if Path(model).exists() else model
    named = {"name": name, "architecture": start.architecture, "digest": start.digest}
    levels, allocation = units.levels, units.allocation(record.params)
    if record.role == "baseline":  # one window in all units
        levels = levels if mask in levels else (mask, masks.full())
        allocation = (levels.index(mask),) * len(allocation)
    return Plan(named, units.unit, levels, dict(zip(units.names, allocation, strict=True)), mask)


def _describe_native(evaluator: CausalEvaluator, plan: Plan, serve: str | None) -> dict[str, str]:
    """Which engines the configuration that names the mask is read by, or why there is none."""
    try:
        config = native_config(evaluator.config, plan.mask, serve or "transformers")
    except NativeError as error:
        return {"refused": str(error)}
    engines = ", ".join(name for name, each in ENGINES.items() if not each.unserved(config))
    return {"model_type": config.model_type, "served_by": engines}


# -- the folder that is served -----------------------------------------------------------------
def check_folder(
    evaluator: EngineEvaluator,
    local: Sequence[Mask],
    delivery: Delivery,
    budgets: Sequence[float],
    run: Path,
) -> None:
    """Refuses an engine that could not serve a plan, before the search: it tries a mask of one
    full layer among local ones, of each kind.

    Raises:
        NativeError: If the engine could not serve it.
    """
    serve, sinks, out = delivery.serve, delivery.sinks, delivery.out
    if serve is None or out is None:
        raise NativeError(
            "a folder is written for one engine: sinks= (--sinks) and out= (--out) go with each "
            f"other and with serve= (--serve), one of {', '.join(ENGINES)}"
        )
    if out.exists() and not ((out / SERVED).is_file() and (run / PLAN).is_file()):
        raise NativeError(EXISTS.format(out))
    if len(budgets) > 1:
        raise NativeError(f"out= is the folder of one budget, got {[*budgets]}")
    layers = evaluator.shape.layers
    for number, each in enumerate(local):
        if sinks is None and keeps_sinks(each, 1):
            raise NativeError(
                f"{each} keeps sinks, which no configuration names; give sinks='tune' (--sinks "
                f"tune: learned logits stand for them), or local='{without_sinks(each)}'"
            )
        tried = masks.per_layer([masks.full(), *[each] * (layers - 1)])
        learns = number == 0 or keeps_sinks(each, layers)
        native = _check_form(evaluator, tried, serve, sinks if learns else None)
    parent = next(each for each in out.absolute().parents if each.exists())
    free, needed = shutil.disk_usage(parent).free, 2 * native.num_parameters() * WRITTEN.itemsize
    if free < needed:
        raise NativeError(f"{parent} has {free:,} bytes free; the folder needs about {needed:,}")


def _check_form(evaluator: EngineEvaluator, mask: Mask, serve: str, sinks: Sinks | None) -> Any:
    """The model with the windows of a mask; NativeError if the engine could not serve it."""
    start, model = evaluator.evaluator.start, evaluator.evaluator.dense(0).model
    assert start is not None
    if sinks is None:
        native = to_native(model, mask, serve)
    else:
        tokens = evaluator.calibration_tokens()
        native, *_ = with_sink_logits(model, mask, serve, sinks, tokens, 0)
    if ENGINES[serve].gguf:
        try:
            begin_file(native, start.locate(), WRITTEN)
        except ImportError as error:
            raise NativeError(str(error)) from error
    return native


def serves(mask: Mask | None, evaluator: EngineEvaluator, delivery: Delivery) -> TypeGuard[Mask]:
    """Whether there is a mask, and a folder that is asked for could hold it; warns where not."""
    if mask is not None and delivery.out is not None and delivery.serve is not None:
        try:
            _check_form(evaluator, mask, delivery.serve, delivery.sinks)
        except (NativeError, DataError) as error:  # or the text is too short for its sinks
            warn(f"{mask} in every layer is judged, but cannot be the plan: {error}")
            return False
    return mask is not None


def _write_served(
    evaluator: EngineEvaluator, unseen: Unseen, plan: Plan, delivery: Delivery, run: Path
) -> dict[str, Any]:
    """Makes the served form of a plan, judges it on unseen documents, and writes the folder.

    Returns:
        What serving.json holds.
    """
    start, serve, out = evaluator.evaluator.start, delivery.serve, delivery.out
    assert start is not None
    assert serve is not None
    assert out is not None
    sinks = delivery.sinks
    form = replace(
        evaluator, sinks=sinks if keeps_sinks(plan.mask, evaluator.shape.layers) else None
    )
    layout = ENGINES[serve].cache_layout
    serving = replace(evaluator.serving, length=evaluator.length)
    asked: dict[str, Any] = {"engine": serve, "model": plan.model["name"], "mask": str(plan.mask)}
    asked["settings"] = json.loads(json.dumps(asdict(serving)))
    learned = f"sinks={form.sinks!r}" if form.sinks else ""
    if out.exists():  # by the same call, which was killed then or is repeated
        written = object_in(out / SERVED)
        same = {name: written.get(name) for name in asked} == asked
        if not same or str(written.get("form")).partition(", ")[2] != learned:
            raise NativeError(EXISTS.format(out))
        return written
    native = form.served(plan.mask, serve, run / "sinks")
    counts: dict[str, Any] = {"dtype": WRITTEN, "cache_layout": layout, **serving.settings}
    cache = kv_bytes(plan.mask, native.model.config, evaluator.length, **counts)
    window = getattr(native.model.config, "sliding_window", None) or evaluator.evaluator.positions
    losses = unseen.compare(served=native)
    near = {name: float(each[:, 1:window].mean()) for name, each in unseen.nll.items()}
    tasks = dict(plan.found["tasks"])
    if tasks:
        tasks["served"] = unseen.evaluator.score_tasks(native)
    facts = {
        **asked,
        "folder": str(out),
        "units": describe_units(plan),
        "form": ", ".join(filter(None, [native.model.config.model_type, learned])),
        "kv_bytes": cache.bytes,
        "dense_kv_bytes": cache.dense_bytes,
        "losses": losses | {"short": {"positions": window, **near}, "tasks": tasks},
        "rival": plan.found.get("rival"),
    }
    tokens = unseen.evaluator.rows.tokens[0]
    return write_folder(out, native.model, serve, start.locate(), facts, tokens, WRITTEN)
