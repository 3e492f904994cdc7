"""Search attention masks of Transformers.

    import masksearch as ms
    from masksearch import masks

    mask = masks.window(3) | masks.global_tokens(1)

Importing it loads nothing heavy, not even torch; every name is loaded when it is first used.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksearch.errors import did_you_mean, install_command, place_of

if TYPE_CHECKING:  # the public names, each written once: read below, and by type checkers
    from masksearch import contracts as contracts
    from masksearch import errors as errors
    from masksearch import masks as masks
    from masksearch import plots as plots
    from masksearch.attention.attach import attach as attach
    from masksearch.attention.attach import attached as attached
    from masksearch.attention.attach import detach as detach
    from masksearch.attention.explain import explain as explain
    from masksearch.cli.main import resume as resume
    from masksearch.contracts import Evaluator as Evaluator
    from masksearch.contracts import Objective as Objective
    from masksearch.contracts import Report as Report
    from masksearch.driver import Comparison as Comparison
    from masksearch.driver import Study as Study
    from masksearch.driver import compare as compare
    from masksearch.driver import open_study as open_study
    from masksearch.driver import search as search
    from masksearch.evaluators.embedding import EmbeddingEvaluator as EmbeddingEvaluator
    from masksearch.evaluators.glue import GlueEvaluator as GlueEvaluator
    from masksearch.evaluators.mlm import MlmEvaluator as MlmEvaluator
    from masksearch.evaluators.planted import PlantedEvaluator as PlantedEvaluator
    from masksearch.executors.local import Local as Local
    from masksearch.executors.ray import RayTune as RayTune
    from masksearch.gates.config import DamConfig as DamConfig
    from masksearch.gates.dam import dam as dam
    from masksearch.gates.gates import Gates as Gates
    from masksearch.gates.units import Units as Units
    from masksearch.gates.units import trim as trim
    from masksearch.masks import Mask as Mask
    from masksearch.masks.shape import Shape as Shape
    from masksearch.masks.text import load_mask as load_mask
    from masksearch.masks.text import save_mask as save_mask
    from masksearch.models.card import push_to_hub as push_to_hub
    from masksearch.models.checkpoints import saved_masks as saved_masks
    from masksearch.models.saving import MaskCallback as MaskCallback
    from masksearch.models.saving import load_pretrained as load_pretrained
    from masksearch.models.saving import save_pretrained as save_pretrained
    from masksearch.models.speed import measure_speed as measure_speed
    from masksearch.positions.analysis import importance as importance
    from masksearch.sparsifier import sparsify as sparsify
    from masksearch.strategies.halving import ParetoHalving as ParetoHalving
    from masksearch.study.console import progress as progress
    from masksearch.user_code import budget_of as budget_of

__version__ = "0.2.0"


# Names of earlier versions, which masksearch-decoders has now
OF_DECODERS = {"CausalEvaluator", "EngineEvaluator", "MaskedCache", "Serving", "allocate"}
OF_DECODERS |= {"kv_bytes", "to_gguf", "to_native"}


def read_public_names(file: str) -> dict[str, str]:
    """Public name -> its module, from a file's import statements for type checkers."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    statements = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in statements for alias in node.names}


PUBLIC = read_public_names(__file__)
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used."""
    if name in OF_DECODERS:
        line = f"from masksearch_decoders import {name} ({install_command('decoders')})"
        raise AttributeError(f"masksearch.{name} is in masksearch-decoders now: {line}")
    if name not in PUBLIC:
        hint = place_of(name) or did_you_mean(name, PUBLIC)
        raise AttributeError(f"module 'masksearch' has no attribute {name!r}{hint}")
    module = PUBLIC[name]
    try:
        if module == "masksearch":
            return importlib.import_module(f"masksearch.{name}")
        value = getattr(importlib.import_module(module), name)
        if module.startswith("masksearch.attention."):  # which is then told of other wrappers
            importlib.import_module("masksearch.models.embedding")
    except ModuleNotFoundError as error:
        missing = error.name or "masksearch"
        if "." in missing or missing == "masksearch":
            raise
        needed = f"masksearch.{name} needs {missing}: {install_command('search')}"
        raise ModuleNotFoundError(needed, name=missing) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, loaded or not."""
    return sorted({*globals(), *PUBLIC})
