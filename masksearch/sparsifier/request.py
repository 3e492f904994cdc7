"""The arguments of `sparsify`, what follows from them, and the evaluator that they ask for."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from masksearch.contracts import Executor
from masksearch.errors import DataError
from masksearch.evaluators.embedding import EmbeddingEvaluator, embeds_texts
from masksearch.evaluators.glue import GlueEvaluator
from masksearch.files import object_in, write_text_in_one_move
from masksearch.masks.checks import at_least, whole
from masksearch.strategies.build import aim_gates, spec_of
from masksearch.tasks.glue.columns import Columns
from masksearch.tasks.glue.tasks import GlueTask
from masksearch.user_code import load_function

Judge = GlueEvaluator | EmbeddingEvaluator
FIRST_SEED, SEEDS = 1000, 3  # of the recoveries that judge; those of a search are its own
DEFAULTS: Mapping[str, Any] = {  # of the evaluators, where the caller says nothing
    "learn_from": "both",
    "finetune_batch": 16,
    "gates_batch": 32,
    "rows": None,
    "dev_rows": None,
}
DAM: Mapping[str, Any] = {
    "gates": {"structure": "free"},
    "config": {"steps": 150, "gate_lr": 0.1},
}
TIME_BATCH, KEPT = "time_batch", "time.json"  # a setting: rows of a batch; of timings
BUDGET = 0.12  # where neither a share nor a time is asked for
SPACE, TRIALS = "masksearch.spaces:head_roles", 24  # of a strategy that draws
SCHEDULES = "masksearch.spaces:token_schedules"  # the space where work is limited
MODEL, RESULT, RUN, CALL = "dense", "result.json", "run", "sparsify.json"
SECONDS = "seconds"  # in the call's file: wall time of earlier calls
SEARCH, PLAIN, JUDGED, HALVING = "search", "as-it-is", "compare", "halving"  # in its run folder
CACHE = "cache"  # there too; its files are named by what they hold
BEGUN = (MODEL, SEARCH)  # of a call that has trained something


@dataclass(frozen=True)
class SparsifyRequest:
    """The arguments of `sparsify`, and what follows from them; each stage reads it.

    Raises:
        ValueError: If a number is below its least, or a setting has an argument of its own.
    """

    model: str | Path
    data: str | Path
    budget: float | None
    task: str | GlueTask | Columns | None
    out: Path
    strategy: str
    strategy_options: Mapping[str, Any] | None
    trials: int | None
    seed: int
    seeds: int | None
    recover_steps: int
    settings: Mapping[str, Any]
    executor: Executor | None
    progress: Literal["auto"] | None
    faster: float | None = None
    work: float | None = None  # of a target of time the one that is fitted to it
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.faster is not None:
            self._check_target(self.faster)
        at_least(TIME_BATCH, self.settings.get(TIME_BATCH, 8), 1)
        for name, least in (("recover_steps", 0), ("seeds", 1), ("trials", 1)):
            number = getattr(self, name)
            if number is not None and (whole(number) is None or number < least):
                raise ValueError(f"{name} is a whole number from {least} on, got {number!r}")
        for name in self.settings.keys() & {"recover_steps", "adapt"}:
            raise ValueError(
                f"{name}={self.settings[name]!r} is no further setting; give sparsify "
                "recover_steps itself (--recover-steps; 0 = masks as they are)"
            )
        if self.task is None and not embeds_texts(self.model, None):
            raise ValueError(
                f"task=None is for an embedding model, and {self.model} is none; name the task"
            )
        if self.recover_steps and embeds_texts(self.model, self.task):
            raise ValueError(
                f"no weight of an embedding model is trained, got recover_steps="
                f"{self.recover_steps}; leave it out, or give 0 (--recover-steps 0)"
            )

    def _check_target(self, faster: float) -> None:
        """Refuses a time that is none, or stands beside what it takes the place of."""
        if not (isinstance(faster, int | float) and 1 < faster < math.inf):
            raise ValueError(
                f"faster is how many times as fast as dense attention, above 1; got {faster!r}"
            )
        if self.recover_steps:
            raise ValueError(
                f"faster={faster:g} trains nothing under a mask, got recover_steps="
                f"{self.recover_steps}; leave it out, or give 0 (--recover-steps 0)"
            )
        if embeds_texts(self.model, self.task):
            raise ValueError(
                f"faster={faster:g} leaves out tokens that the head no longer needs, and the mean "
                f"of an embedding model such as {self.model} needs them all: nothing dies; take "
                "bfloat16, rows sorted by length, shorter inputs or fewer layers"
            )

    @property
    def run(self) -> Path:
        """The folder of all that stands beside the saved model."""
        return self.out / RUN

    @property
    def asked(self) -> dict[str, int | None]:
        """The arguments that may change between two calls into one folder."""
        return {"seeds": self.seeds, "trials": self.trials}

    @property
    def about(self) -> dict[str, Any]:
        """The arguments that may not, as `sparsify.json` holds them."""
        about: dict[str, Any] = {"model": str(self.model), "data": str(self.data)}
        own = {} if isinstance(self.task, str | None) else vars(self.task)
        task = {n: v for n, v in own.items() if v != getattr(type(self.task), n, None)}
        about |= {"task": task or self.task, "budget": self.budget, "strategy": self.strategy}
        about |= {"options": repr(self.strategy_options), "seed": self.seed}
        about |= {"recover_steps": self.recover_steps, "settings": repr(self.settings)}
        if self.faster is not None:
            about["faster"] = self.faster
        elif self.work is not None:
            about["work"] = self.work
        plain: dict[str, Any] = json.loads(json.dumps(about, default=vars))
        return plain

    @property
    def noted(self) -> dict[str, Any]:
        """The contents of `sparsify.json`; empty where there is none."""
        path = self.run / CALL
        return object_in(path) if path.is_file() else {}

    @property
    def has_begun(self) -> bool:
        """Whether a call into the folder has trained something."""
        return any((self.run / name).exists() for name in BEGUN)

    def note(self, start: Judge) -> None:
        """Writes `sparsify.json`: the arguments, and a hash of rows, checkpoint and settings."""
        self._write(self.about | {"protocol": start.protocol, SECONDS: self.noted.get(SECONDS, 0)})

    def _write(self, noted: Mapping[str, Any]) -> None:
        """Writes `sparsify.json`."""
        write_text_in_one_move(self.run / CALL, json.dumps(noted, indent=1) + "\n")

    def spent(self) -> float:
        """Wall seconds of the calls into the folder: of this one so far, and of those before it,
        but for any that was killed outright."""
        return float(self.noted.get(SECONDS, 0)) + time.monotonic() - self.started

    def note_spent(self) -> None:
        """Adds the seconds of this call, which ends, to those of the calls before it."""
        if self.noted:
            self._write(self.noted | {SECONDS: self.spent()})

    @property
    def draws(self) -> bool:
        """Whether the strategy draws masks from a space."""
        return spec_of(self.strategy).space != "none"

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's options; its gates are aimed at the budget."""
        gated = spec_of(self.strategy).gated
        if gated is None or not gated({}):
            return dict(self.strategy_options or {})
        options = dict(self.strategy_options or DAM)
        aimed = [] if self.budget is None else [self.budget]
        return options | {"config": aim_gates(options.get("config", {}), aimed)}

    @property
    def searches(self) -> dict[str, int]:
        """Name -> seed of each search."""
        count = 1 if self.recover_steps else self.seeds or 1
        seeds = range(self.seed, self.seed + count)
        return {self.strategy if count == 1 else f"{self.strategy}, seed {n}": n for n in seeds}

    def search_folder(self, seed: int) -> Path:
        """The run folder of a search."""
        folder = self.run / (SEARCH if seed == self.seed else f"{SEARCH}-{seed}")
        return folder if self.faster is None or self.work is None else folder / f"{self.work:.4f}"

    @property
    def judging_seeds(self) -> range:
        """Seeds of the recoveries that judge; one where masks are judged as they are."""
        count = (self.seeds or SEEDS) if self.recover_steps else 1
        return range(FIRST_SEED, FIRST_SEED + count)

    @property
    def trials_of_a_search(self) -> int:
        """How many trials a search has, beside the hand-designed masks."""
        return self.trials or (TRIALS if self.draws else 2)

    @property
    def limit(self) -> float:
        """The share of the pairs, or of the work, that masks of the search may keep."""
        limit = self.budget if self.work is None else self.work
        assert limit is not None
        return limit

    @property
    def times_as_fast(self) -> float:
        """The target of time."""
        assert self.faster is not None
        return self.faster

    @property
    def how(self) -> dict[str, Any]:
        """Arguments that `search` and `compare` share."""
        return {"executor": self.executor, "progress": self.progress, "work": self.work}

    @property
    def space(self) -> Any:
        """The space of a strategy that draws; None = it draws from none."""
        named = SPACE if self.work is None and self.faster is None else SCHEDULES
        return load_function(named) if self.draws else None

    def say(self, line: str) -> None:
        """Prints a line, unless progress is switched off."""
        if self.progress:
            print("sparsify:", line, file=sys.stderr, flush=True)


def build_judge(request: SparsifyRequest) -> Judge:
    """Judges masks on the model that is given, on the rows that searches read.

    Raises:
        DataError: If the folder was begun with others.
    """
    fields: dict[str, Any] = {**request.settings, "split": "validation"}
    fields.pop(TIME_BATCH, None)
    if embeds_texts(request.model, request.task):
        fields = {"columns": getattr(request.task, "texts", ()), **fields}
        start: Judge = EmbeddingEvaluator(request.data, request.model, **fields)
    else:
        fields = {**DEFAULTS, "cache": request.run / CACHE, "read_out": "own", **fields}
        named: Any = {"weights": request.model, "tasks": (request.task,), "adapt": "none"}
        if request.recover_steps:
            named |= {"adapt": "recover", "recover_steps": request.recover_steps}
        start = GlueEvaluator(None, request.data, **named, **fields)
    if request.has_begun and request.noted.get("protocol") not in (None, start.protocol):
        raise DataError(
            f"{request.out} was begun with other rows or another checkpoint than {request.data} "
            f"and {request.model} hold now; give a new folder"
        )
    return start


def adjust(judge: Judge, **changes: Any) -> Judge:
    """The evaluator with other settings of what is trained; an embedding model has none."""
    return judge if isinstance(judge, EmbeddingEvaluator) else replace(judge, **changes)


def in_part(full: Judge, part: int) -> Judge:
    """The evaluator with a part of the steps of recovery, whose weights are not kept."""
    steps = max(1, full.recover_steps // part)
    return adjust(full, recover_steps=steps, keep_recovered=False)
