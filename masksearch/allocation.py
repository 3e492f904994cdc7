"""Which layers or heads of a trained decoder keep full attention, within a budget of its cache.

plan = allocate("my-llama", "books/", budget=.25)
attach(model, plan.mask)                    # or to_native(model, plan.mask)
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from masksearch import masks
from masksearch.analysis.row_scores import ROWS, RowScores
from masksearch.analysis.stats import estimate
from masksearch.contracts import Record
from masksearch.driver import search
from masksearch.errors import NativeError, SearchError
from masksearch.evaluators.causal import CausalEvaluator
from masksearch.gates.units import Unit, read_levels, write_levels
from masksearch.masks.core import Mask
from masksearch.models.plan import Plan
from masksearch.serving.engines import HELD, READINGS, Serving, Target, unserved
from masksearch.serving.kv_cache import Account
from masksearch.serving.native import native_config
from masksearch.strategies.allocate import AllocateStrategy
from masksearch.strategies.build import build_strategy
from masksearch.study.records import read_budgets
from masksearch.tasks.next_token import NextTokenText
from masksearch.tasks.splits import FEW

SINKS, WINDOWS = 4, 8  # the default local mask: so many sinks, and this part of the length
LEVEL = 0.95  # of intervals over documents


def allocate(
    model: str | Path,
    text: str | Path,
    budget: float = 0.25,
    *,
    unit: Unit = "layer",
    local: Mask | str | None = None,
    method: str = "greedy",
    tries: int | None = None,
    length: int = 1024,
    sequences: int = 64,
    held_out: str | Path | None = None,
    account: Account = "mask",
    serving: Serving | None = None,
    trials: int | None = None,
    check: bool = True,
    run: str | Path = "runs/allocate",
    progress: Literal["auto"] | None = "auto",
) -> Plan:
    """Finds which layers or heads of a decoder keep full attention. Nothing is trained, but gates.

    The search goes on where it was stopped, in its run folder, which also gets the plan and,
    where the model's own configuration can name the mask, that as `native.json`.

    Args:
        model: A decoder: a folder, a name on the Hugging Face Hub, or a GGUF file.
        text: The text that decides: a file, a folder of `.txt` files, or `hf:OWNER/NAME`; whole
            documents, at least 16 held out.
        budget: Largest share of the bytes of the dense cache of keys and values, in (0, 1].
        unit: What is full or local: layer, kv_head or head. Only layers free memory in the
            caches that exist.
        local: The mask of the other units; None = 4 sinks and a window of an eighth of the length.
        method: `greedy` (raise the best unit, round by round), or the best sum of scores within
            the budget: `restore` (a unit alone full), `ablate` (it alone local), `gates`
            (switches, trained on frozen weights), or a file of gates.
        tries: Units that a round of greedy judges; None = all.
        length: Tokens of a sequence, and of the cache that is counted.
        sequences: Held-out sequences that are judged, at most.
        held_out: Text to judge by; None = the end of `text`.
        account: Whose bytes the budget counts, as of `masksearch.kv_bytes`: of an engine
            (`"transformers"`, `"vllm"`, `"llama.cpp"`) it is what that engine reserves.
        serving: How the engine is run, and the length that is counted: `Serving(length=32768)`, on
            the command line `{"length": 32768}`; None = its defaults.
        trials: Masks to judge, at most; None = as many as the method needs.
        check: Judge the plan and dense attention on documents that the search has not seen.
        run: Folder of the search.
        progress: As of `search`.

    Returns:
        The plan; `found` says its bytes, and its losses with their interval.

    Raises:
        ValueError: If the budget is no share, or less than the local mask in all units costs.
        SearchError: If bytes do not add up over the units, or no mask within the budget was
            judged.
        DataError: If the text or the model cannot be read.
    """
    plans = allocate_each(
        model,
        text,
        [budget],
        unit=unit,
        local=local,
        method=method,
        tries=tries,
        length=length,
        sequences=sequences,
        held_out=held_out,
        account=account,
        serving=serving,
        trials=trials,
        check=check,
        run=Path(run),
        progress=progress,
    )
    return plans[budget]


def allocate_each(
    model: str | Path,
    text: str | Path,
    budgets: Sequence[float],
    *,
    unit: Unit,
    local: Mask | str | None,
    method: str,
    tries: int | None,
    length: int,
    sequences: int,
    held_out: str | Path | None,
    account: Account,
    serving: Serving | None,
    trials: int | None,
    check: bool,
    run: Path,
    progress: Literal["auto"] | None,
) -> dict[float, Plan]:
    """A plan for each budget, by one search; see `allocate`. They are in the run folder as well:
    `plan.json`, of several budgets `plan-0.25.json` and so on."""
    if not isinstance(model, str | Path):
        raise TypeError(
            f"model is a folder, a name on the Hub or a GGUF file, got {type(model).__name__}: "
            "save it with its tokenizer (save_pretrained), and give the folder"
        )
    limits = sorted(read_budgets(budgets))
    judge = CausalEvaluator(
        text,
        weights=model,
        length=length,
        held_out=held_out,
        held_out_sequences=sequences,
        adapt="none",
        cost="kv_bytes" if unit == "layer" or account in HELD else "kv_bytes_per_head",
        account=account,
        serving=serving or Serving(),
    )
    levels = write_levels(read_levels([local or default_local(length), masks.full()]))
    options: dict[str, Any] = {"unit": unit, "levels": levels, "method": method, "budgets": limits}
    options |= {} if tries is None else {"tries": tries}
    whole = read_strategy(judge, options, run).most_trials  # refuses budgets that nothing keeps
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the strategy has no more masks")
        if trials is None:
            warnings.filterwarnings("ignore", message="strategy 'allocate' judges")
        study = search(
            None,
            judge,
            run=run,
            trials=whole if trials is None else trials,
            strategy="allocate",
            strategy_options=options,
            progress=progress,
        )
    strategy = read_strategy(judge, options, run)
    for record in study.records():
        strategy.tell(record)
    strategy.ask()  # the scores are known once the masks that they come from are
    within = dict[float, Record]()
    for each in limits:
        if not (inside := study.within(each)):
            raise SearchError(
                f"no mask within the budget {each:g} was judged in {len(study.records())} trials; "
                "give more trials, and repeat the call"
            )
        within[each] = inside[0]
    unseen = judge_unseen(judge, within) if check else {}
    plans = {}
    for limit, record in within.items():
        end = "" if len(within) == 1 else f"-{limit:g}"
        plan = make_plan(judge, strategy, record, str(model))
        found: dict[str, Any] = {
            "budget": {"cost": judge.cost, "limit": limit, "account": account},
            "length": judge.serving.length or length,
            "scores": {"method": method, "of_units": strategy.worth},
            "cache": dict(judge.measures_of(plan.mask)),
            "nll": {"search": record.values["nll"], "unseen": unseen.get(limit)},
            "native": write_native(judge, plan, run / f"native{end}.json"),
            "trial": record.number,
        }
        plans[limit] = replace(plan, found=found)
        plans[limit].save(run / f"plan{end}.json")
    return plans


def default_local(length: int) -> str:
    """Sinks and a window.

    >>> default_local(1024)
    'columns(4) | window(127)'
    """
    return f"columns({SINKS}) | window({max(1, length // WINDOWS - 1)})"


def read_strategy(judge: CausalEvaluator, options: dict[str, Any], run: Path) -> AllocateStrategy:
    """The strategy of a search, without its records."""
    found = build_strategy("allocate", None, judge, seed=0, run=run, options=options)
    assert isinstance(found, AllocateStrategy)
    return found


def judge_unseen(
    judge: CausalEvaluator, within: Mapping[float, Record]
) -> dict[float, dict[str, float]]:
    """Loss of dense attention and of each mask on documents that the search has not seen, and
    their difference with its interval over documents.

    Warns where the held-out text has fewer than 16 documents: pieces of them, which are alike,
    then stand in their place, and the interval is too short.
    """
    final = judge.final()

    def losses(mask: Mask) -> NDArray[Any]:
        with tempfile.TemporaryDirectory() as folder:
            for _ in final(mask, seed=0, workdir=Path(folder)):
                pass
            return RowScores.load(Path(folder) / ROWS).scores["text"]

    text, dense, found = judge.task(), losses(masks.full()), {}
    documents = len(text.begins.documents) if isinstance(text, NextTokenText) else len(dense)
    if documents < FEW:
        warnings.warn(
            f"the held-out text has {documents} documents, so its pieces are judged in their "
            "place: they are alike, and the interval is too short; give whole documents, at least "
            f"{FEW} held out",
            stacklevel=4,
        )
    for budget, record in within.items():
        assert record.mask is not None
        own = losses(record.mask)
        lost = estimate((own - dense).tolist(), LEVEL)
        found[budget] = {
            "dense": float(dense.mean()),
            "masked": float(own.mean()),
            "difference": lost.value,
            "documents": len(own),
        }
        if documents < FEW:
            found[budget]["pieces_of"] = documents
        if math.isfinite(lost.low):
            found[budget] |= {"low": lost.low, "high": lost.high}
    return found


def make_plan(
    judge: CausalEvaluator, strategy: AllocateStrategy, record: Record, model: str
) -> Plan:
    """The plan of a trial."""
    start, mask, units = judge.start, record.mask, strategy.units
    assert start is not None
    assert mask is not None
    name = Path(model).name if Path(model).exists() else model
    named = {"name": name, "architecture": start.architecture, "digest": start.digest}
    levels = dict(zip(units.names, units.allocation(record.params), strict=True))
    return Plan(named, units.unit, units.levels, levels, mask)


def write_native(judge: CausalEvaluator, plan: Plan, path: Path) -> dict[str, str]:
    """Writes the configuration that names the mask, or says why there is none."""
    path.unlink(missing_ok=True)
    try:
        engine = judge.account
        target: Target = "transformers" if engine == "mask" or engine == "head" else engine
        config = native_config(judge.config, plan.mask, target)
    except NativeError as error:
        return {"refused": str(error)}
    path.write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    engines = ", ".join(each for each in READINGS if not unserved(each, config))
    named = {"configuration": path.name, "model_type": config.model_type}
    return {**named, "served_by": engines}
