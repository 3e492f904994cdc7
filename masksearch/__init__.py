"""Search attention masks of Transformers.

    import masksearch as ms
    from masksearch import masks

    mask = masks.window(3) | masks.global_tokens(1)

Importing it loads torch and nothing heavier; everything else is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from masksearch import masks
from masksearch.contracts import (
    Budget,
    Evaluate,
    Objective,
    OneShot,
    Proposal,
    Record,
    Report,
    Shape,
)
from masksearch.errors import (
    AttachError,
    DataError,
    EmptyRowError,
    HeadCountError,
    LayerCountError,
    LengthError,
    MaskFormatError,
    MaskSearchError,
    NonFiniteLossError,
    ResumeError,
    SearchError,
    UnknownNameError,
)
from masksearch.masks import FAMILIES, Mask
from masksearch.masks.lower import flex_block_mask, load_mask, lower, save_mask
from masksearch.masks.measure import fingerprint

if TYPE_CHECKING:
    from masksearch.driver import Study, compare, search
    from masksearch.evaluators.glue import GlueEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator
    from masksearch.evaluators.planted import PlantedEvaluator
    from masksearch.executors.local import Local
    from masksearch.gates.bank import Gates
    from masksearch.gates.dam import DamConfig, dam
    from masksearch.gates.result import DamResult
    from masksearch.models.attach import attach, detach
    from masksearch.results.comparison import Comparison
    from masksearch.tasks.planted import PlantedProcess
    from masksearch.user_code import load_function

__version__ = "0.1.0"

LAZY = {
    "Comparison": "masksearch.results.comparison",
    "DamConfig": "masksearch.gates.dam",
    "DamResult": "masksearch.gates.result",
    "Gates": "masksearch.gates.bank",
    "GlueEvaluator": "masksearch.evaluators.glue",
    "Local": "masksearch.executors.local",
    "MlmEvaluator": "masksearch.evaluators.mlm",
    "PlantedEvaluator": "masksearch.evaluators.planted",
    "PlantedProcess": "masksearch.tasks.planted",
    "Study": "masksearch.driver",
    "attach": "masksearch.models.attach",
    "compare": "masksearch.driver",
    "dam": "masksearch.gates.dam",
    "detach": "masksearch.models.attach",
    "load_function": "masksearch.user_code",
    "search": "masksearch.driver",
}

__all__ = [
    "FAMILIES",
    "AttachError",
    "Budget",
    "Comparison",
    "DamConfig",
    "DamResult",
    "DataError",
    "EmptyRowError",
    "Evaluate",
    "Gates",
    "GlueEvaluator",
    "HeadCountError",
    "LayerCountError",
    "LengthError",
    "Local",
    "Mask",
    "MaskFormatError",
    "MaskSearchError",
    "MlmEvaluator",
    "NonFiniteLossError",
    "Objective",
    "OneShot",
    "PlantedEvaluator",
    "PlantedProcess",
    "Proposal",
    "Record",
    "Report",
    "ResumeError",
    "SearchError",
    "Shape",
    "Study",
    "UnknownNameError",
    "attach",
    "compare",
    "dam",
    "detach",
    "fingerprint",
    "flex_block_mask",
    "load_function",
    "load_mask",
    "lower",
    "masks",
    "save_mask",
    "search",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name not in LAZY:
        raise AttributeError(f"module 'masksearch' has no attribute {name!r}")
    value = getattr(importlib.import_module(LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted([*globals(), *LAZY])
