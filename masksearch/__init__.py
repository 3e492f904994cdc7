"""Search attention masks of Transformers.

    import masksearch as ms
    from masksearch import masks

    mask = masks.window(3) | masks.global_tokens(1)

Importing it loads nothing heavy, not even torch; every name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masksearch import masks
    from masksearch.analysis.compare import Comparison
    from masksearch.analysis.proxy_card import ProxyCard
    from masksearch.attention.attach import attach, attached, detach
    from masksearch.attention.explain import Explanation, explain
    from masksearch.contracts import (
        Budget,
        Evaluate,
        Objective,
        OneShot,
        Proposal,
        Record,
        Report,
        Shape,
        Shared,
    )
    from masksearch.driver import Study, compare, search
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
        UncountedHops,
        UnknownNameError,
    )
    from masksearch.evaluators.cost import CostEvaluator, WithCost
    from masksearch.evaluators.glue import GlueEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator
    from masksearch.evaluators.planted import PlantedEvaluator
    from masksearch.evaluators.shared import SharedWeights
    from masksearch.evaluators.squad import SquadEvaluator
    from masksearch.evaluators.swag import SwagEvaluator
    from masksearch.evaluators.wrappers import Cached
    from masksearch.executors.local import Local
    from masksearch.executors.on_ray import RayTune
    from masksearch.gates.config import DamConfig
    from masksearch.gates.dam import dam
    from masksearch.gates.gates import Gates
    from masksearch.gates.perturbation import perturbation_scores
    from masksearch.gates.result import DamResult
    from masksearch.loggers.progress import progress
    from masksearch.masks import FAMILIES, ContentMask, Mask
    from masksearch.masks.lower import flex_block_mask, load_mask, lower, save_mask
    from masksearch.masks.measure import fingerprint
    from masksearch.masks.nearest import NearestFamily, nearest_family
    from masksearch.models.checkpoints import Pretrained, open_pretrained
    from masksearch.models.manifest import saved_masks
    from masksearch.models.saved import load_pretrained, save_pretrained
    from masksearch.positions.analysis import importance
    from masksearch.positions.attention_maps import AttentionMaps, attention_maps
    from masksearch.positions.controls import diagonal_controls
    from masksearch.positions.dynamics import importance_dynamics
    from masksearch.positions.result import Importance
    from masksearch.report.proxy import proxy_card
    from masksearch.strategies.halving import ParetoHalving
    from masksearch.strategies.user_code import load_function
    from masksearch.study.constraints import Constraint
    from masksearch.tasks.glue.read import GlueScore, glue_score
    from masksearch.tasks.planted.glue import PlantedGlue
    from masksearch.tasks.planted.process import PlantedProcess

__version__ = "0.1.0"

LAZY = {
    "FAMILIES": "masksearch.masks",
    "AttachError": "masksearch.errors",
    "AttentionMaps": "masksearch.positions.attention_maps",
    "Budget": "masksearch.contracts",
    "Cached": "masksearch.evaluators.wrappers",
    "Comparison": "masksearch.analysis.compare",
    "Constraint": "masksearch.study.constraints",
    "ContentMask": "masksearch.masks",
    "CostEvaluator": "masksearch.evaluators.cost",
    "DamConfig": "masksearch.gates.config",
    "DamResult": "masksearch.gates.result",
    "DataError": "masksearch.errors",
    "EmptyRowError": "masksearch.errors",
    "Evaluate": "masksearch.contracts",
    "Explanation": "masksearch.attention.explain",
    "Gates": "masksearch.gates.gates",
    "GlueEvaluator": "masksearch.evaluators.glue",
    "GlueScore": "masksearch.tasks.glue.read",
    "HeadCountError": "masksearch.errors",
    "Importance": "masksearch.positions.result",
    "LayerCountError": "masksearch.errors",
    "LengthError": "masksearch.errors",
    "Local": "masksearch.executors.local",
    "Mask": "masksearch.masks",
    "MaskFormatError": "masksearch.errors",
    "MaskSearchError": "masksearch.errors",
    "MlmEvaluator": "masksearch.evaluators.mlm",
    "NearestFamily": "masksearch.masks.nearest",
    "NonFiniteLossError": "masksearch.errors",
    "Objective": "masksearch.contracts",
    "OneShot": "masksearch.contracts",
    "ParetoHalving": "masksearch.strategies.halving",
    "PlantedEvaluator": "masksearch.evaluators.planted",
    "PlantedGlue": "masksearch.tasks.planted.glue",
    "PlantedProcess": "masksearch.tasks.planted.process",
    "Pretrained": "masksearch.models.checkpoints",
    "Proposal": "masksearch.contracts",
    "ProxyCard": "masksearch.analysis.proxy_card",
    "RayTune": "masksearch.executors.on_ray",
    "Record": "masksearch.contracts",
    "Report": "masksearch.contracts",
    "ResumeError": "masksearch.errors",
    "SearchError": "masksearch.errors",
    "Shape": "masksearch.contracts",
    "Shared": "masksearch.contracts",
    "SharedWeights": "masksearch.evaluators.shared",
    "SquadEvaluator": "masksearch.evaluators.squad",
    "Study": "masksearch.driver",
    "SwagEvaluator": "masksearch.evaluators.swag",
    "UncountedHops": "masksearch.errors",
    "UnknownNameError": "masksearch.errors",
    "WithCost": "masksearch.evaluators.cost",
    "attach": "masksearch.attention.attach",
    "attached": "masksearch.attention.attach",
    "attention_maps": "masksearch.positions.attention_maps",
    "compare": "masksearch.driver",
    "dam": "masksearch.gates.dam",
    "detach": "masksearch.attention.attach",
    "diagonal_controls": "masksearch.positions.controls",
    "explain": "masksearch.attention.explain",
    "fingerprint": "masksearch.masks.measure",
    "flex_block_mask": "masksearch.masks.lower",
    "glue_score": "masksearch.tasks.glue.read",
    "importance": "masksearch.positions.analysis",
    "importance_dynamics": "masksearch.positions.dynamics",
    "load_function": "masksearch.strategies.user_code",
    "load_mask": "masksearch.masks.lower",
    "load_pretrained": "masksearch.models.saved",
    "lower": "masksearch.masks.lower",
    "nearest_family": "masksearch.masks.nearest",
    "open_pretrained": "masksearch.models.checkpoints",
    "perturbation_scores": "masksearch.gates.perturbation",
    "progress": "masksearch.loggers.progress",
    "proxy_card": "masksearch.report.proxy",
    "save_mask": "masksearch.masks.lower",
    "save_pretrained": "masksearch.models.saved",
    "saved_masks": "masksearch.models.manifest",
    "search": "masksearch.driver",
}

REMOVED = {  # names of earlier versions, and what serves instead
    "Together": 'RayTune(slots=4, resources={"cpu": 1, "gpu": 0.25}) runs four trials on one GPU',
    "train_together": "train one model after the other, or search with RayTune on shares of a GPU",
}

__all__ = [
    "FAMILIES",
    "AttachError",
    "AttentionMaps",
    "Budget",
    "Cached",
    "Comparison",
    "Constraint",
    "ContentMask",
    "CostEvaluator",
    "DamConfig",
    "DamResult",
    "DataError",
    "EmptyRowError",
    "Evaluate",
    "Explanation",
    "Gates",
    "GlueEvaluator",
    "GlueScore",
    "HeadCountError",
    "Importance",
    "LayerCountError",
    "LengthError",
    "Local",
    "Mask",
    "MaskFormatError",
    "MaskSearchError",
    "MlmEvaluator",
    "NearestFamily",
    "NonFiniteLossError",
    "Objective",
    "OneShot",
    "ParetoHalving",
    "PlantedEvaluator",
    "PlantedGlue",
    "PlantedProcess",
    "Pretrained",
    "Proposal",
    "ProxyCard",
    "RayTune",
    "Record",
    "Report",
    "ResumeError",
    "SearchError",
    "Shape",
    "Shared",
    "SharedWeights",
    "SquadEvaluator",
    "Study",
    "SwagEvaluator",
    "UncountedHops",
    "UnknownNameError",
    "WithCost",
    "attach",
    "attached",
    "attention_maps",
    "compare",
    "dam",
    "detach",
    "diagonal_controls",
    "explain",
    "fingerprint",
    "flex_block_mask",
    "glue_score",
    "importance",
    "importance_dynamics",
    "load_function",
    "load_mask",
    "load_pretrained",
    "lower",
    "masks",
    "nearest_family",
    "open_pretrained",
    "perturbation_scores",
    "progress",
    "proxy_card",
    "save_mask",
    "save_pretrained",
    "saved_masks",
    "search",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name == "masks":
        return importlib.import_module("masksearch.masks")
    if name in REMOVED:
        raise AttributeError(f"masksearch.{name} was removed; {REMOVED[name]}")
    if name not in LAZY:
        raise AttributeError(f"module 'masksearch' has no attribute {name!r}")
    value = getattr(importlib.import_module(LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted([*globals(), *LAZY])
