"""Judges a mask on a decoder as an engine serves it: in its form, by the bytes that it reserves.

evaluator = EngineEvaluator(CausalEvaluator("books", weights="models/smollm2"), sinks="calibrate")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from masksearch.attention.attach import attach
from masksearch.contracts import Report
from masksearch.errors import NativeError, check_name
from masksearch.evaluators.wrappers import EvaluatorWrapper, closed_after
from masksearch.files import short_hash
from masksearch.masks.core import Mask
from masksearch.masks.measure import keys_of_rows
from masksearch.tasks.splits import evenly_spaced
from masksearch_decoders.cache.kv_cache import kv_bytes
from masksearch_decoders.causal import CACHE, CACHE_PER_HEAD, PROTOCOL, CausalEvaluator
from masksearch_decoders.decoders import NextTokenModel
from masksearch_decoders.engine import Serving
from masksearch_decoders.engines import CACHE_LAYOUTS, COUNTED
from masksearch_decoders.native import from_native, to_native
from masksearch_decoders.sinks import MEASURED, Sinks, keeps_sinks
from masksearch_decoders.tasks.next_token import NextTokenText
from masksearch_decoders.tasks.recall import Recall

CALIBRATED = MEASURED + 40  # sequences that sinks are measured and tuned on


@dataclass(frozen=True)
class EngineEvaluator(EvaluatorWrapper):
    """Wraps the evaluator of a decoder: masks are judged, and counted, as an engine serves them.

    Beside the decoder's own measures each record has the bytes of every engine that serves the
    mask, as shares of its dense cache: `"kv_bytes_vllm"` and so on. With the defaults scores and
    protocol id are the decoder's own.

    Args:
        evaluator: Of the decoder.
        cache_layout: Whose bytes `"kv_bytes"` are: as of `kv_bytes`.
        serving: How the engines are run, and the length that is counted.
        sinks: What is judged in place of a mask that keeps tokens of fixed positions beside a
            window: the GraniteSWA that engines serve, as `to_native(sinks=)` makes it
            on the training text. Of a checkpoint, judged as it is; None = the mask itself.

    Raises:
        TypeError: If `evaluator` is another one.
        UnknownNameError: If there is no such layout, or form of sinks.
        ValueError: If sinks are asked for of another decoder than a checkpoint on a text.
    """

    evaluator: CausalEvaluator
    cache_layout: str = "mask"
    serving: Serving = field(default_factory=Serving)
    sinks: Sinks | None = None

    def __post_init__(self) -> None:
        evaluator = self.evaluator
        if not isinstance(evaluator, CausalEvaluator):
            raise TypeError(
                f"EngineEvaluator takes a CausalEvaluator, got {type(evaluator).__name__}: "
                "engines serve decoders; put Cached around it"
            )
        check_name("cache_layout", self.cache_layout, CACHE_LAYOUTS)
        check_name("sinks", str(self.sinks), ("None", *get_args(Sinks)))
        if self.sinks is not None and not evaluator.seedless:
            raise ValueError(
                "sinks= judges a checkpoint in the form that engines serve: give weights= and "
                f"adapt='none', got weights={evaluator.weights} and adapt={evaluator.adapts!r}"
            )
        if self.sinks is not None and isinstance(evaluator.corpus, Recall):
            raise ValueError(
                "planted recall has token ids of its own, so sinks= belongs to text; leave it out"
            )

    @property
    def measure_names(self) -> tuple[str, ...]:
        """The decoder's, and those of engines."""
        return (*self.evaluator.measure_names, *COUNTED)

    @property
    def cost(self) -> str:
        """The second objective."""
        return self.evaluator.cost

    @property
    def length(self) -> int:
        """Positions that are counted."""
        return self.serving.length or self.evaluator.positions

    def measures_of(self, mask: Mask) -> dict[str, float]:
        """Shares of the dense cache's bytes: of the layout, of a cache that frees keys of single
        KV heads, and of each engine that serves the mask. Nothing of one that follows the tokens.

        Raises:
            NativeError: If the engine of the layout does not serve the mask.
        """
        if mask.needs_tokens:
            return {}
        config = self.evaluator.config

        def share(layout: str) -> float:
            settings = self.serving.settings
            return kv_bytes(mask, config, self.length, cache_layout=layout, **settings).share

        costs = {CACHE: share(self.cache_layout), CACHE_PER_HEAD: share("head")}
        for name, engine in COUNTED.items():
            with suppress(NativeError):
                costs[name] = (
                    costs[CACHE] if engine.name == self.cache_layout else share(engine.name)
                )
        return costs

    @property
    def protocol(self) -> str:
        """The decoder's, with what is served in another way than by default."""
        settings: dict[str, object] = {}
        if (counted := (self.cache_layout, self.serving)) != ("mask", Serving()):
            settings["account"] = counted
        if self.sinks is not None:
            settings["sinks"] = self.sinks, self.evaluator.task().train_digest
        return short_hash(PROTOCOL, repr(settings | self.evaluator.settings()))

    def __call__(self, mask: Mask, *, seed: int, workdir: Path) -> Iterator[Report]:
        """Yields the decoder's reports; of a mask with sinks, where these are asked for as they
        are served, that of the model that engines open."""
        evaluator = self.evaluator
        if self.sinks is None or not keeps_sinks(mask, evaluator.shape.layers):
            with closed_after(evaluator(mask, seed=seed, workdir=workdir)) as reports:
                yield from reports
            return
        keys_of_rows(
            mask, evaluator.shape
        )  # refuses a mask that does not fit before anything is read
        native = self.served(mask)
        attach(native, from_native(native.model.config))  # what is local is linear then
        yield Report(
            0, evaluator.last_values(native, workdir, seed, evaluator.dense_decoder(seed))
        )

    def served(
        self, mask: Mask, target: str = "transformers", folder: Path | None = None
    ) -> NextTokenModel:
        """The checkpoint as an engine serves the mask; `sinks` and their biases are measured on
        the training text (checkpoints of `"tune"`: in `folder`). It has the judged weights."""
        evaluator = self.evaluator
        how: dict[str, Any] = {}
        if self.sinks:
            how = {"sinks": self.sinks, "folder": folder, "text": self.calibration_tokens()}
        return NextTokenModel(to_native(evaluator.dense(0).model, mask, target, **how))

    def calibration_tokens(self) -> Tensor:
        """Sequences of the training text that sinks are measured on, int64 `[sequences, n]`."""
        text = self.evaluator.task()
        assert isinstance(text, NextTokenText)
        return text.train[evenly_spaced(len(text.train), CALIBRATED)].long()
