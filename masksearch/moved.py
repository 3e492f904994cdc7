"""Forwards imports of modules that have moved, with a DeprecationWarning.

`from masksearch.models.sizes import encoder` goes on working and says where `encoder` lives now.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "demo": "cli.demo",
    "evaluators.rows": "evaluators.token_rows",
    "executors.halving": "strategies.halving",
    "executors.on_ray": "executors.ray",
    "gates.agreement": "gates.diagnostics",
    "gates.bank": "gates.gates",
    "gates.published": "gates.sparsebert",
    "gates.recovery": "gates.diagnostics",
    "models.attach": "attention.attach",
    "models.flex": "attention.kernels.flex",
    "models.kernels": "attention.kernels.gather",
    "models.sizes": "models.encoders",
    "positions.maps": "positions.attention_maps",
    "progress_bar": "loggers.progress",
    "reporting": "report.collect",
    "results.comparison": "driver",
    "results.dam_plots": "report.figures.dam",
    "results.frontier": "analysis.pareto",
    "results.pictures": "report.figures.masks",
    "results.plots": "report.charts",
    "results.position_plots": "report.figures.positions",
    "results.proxy_card": "report.proxy",
    "results.proxy_observations": "analysis.proxy_observations",
    "results.stats": "analysis.stats",
    "results.study_store": "study.store",
    "strategies.oneshot": "strategies.dam",
    "strategies.optuna_study": "strategies.samplers",
    "strategies.units": "gates.units",
    "tasks.corpus": "tasks.text.corpus",
    "train": "training.loop",
}  # earlier name -> today's, both below `masksearch`
PREFIX = "masksearch."


class Forwarded(Loader):
    """Fills a module of an earlier name with what the module of today's name holds."""

    def __init__(self, target: str) -> None:
        self.target = target

    def exec_module(self, module: ModuleType) -> None:
        """Warns, imports today's module and copies its names."""
        warnings.warn(
            f"{module.__name__} has moved: import {self.target}", DeprecationWarning, stacklevel=2
        )
        names = vars(importlib.import_module(self.target))
        vars(module).update({k: v for k, v in names.items() if not k.startswith("__")})


class MovedModules(MetaPathFinder):
    """Finds the modules of `MOVED`, and the packages that they stood in."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an earlier name; None for any other."""
        name = fullname.removeprefix(PREFIX)
        if name == fullname:
            return None
        if name in MOVED:
            return spec_from_loader(fullname, Forwarded(PREFIX + MOVED[name]))
        if any(moved.startswith(f"{name}.") for moved in MOVED):
            return ModuleSpec(fullname, None, is_package=True)  # an empty namespace
        return None


def forward_moved_modules() -> None:
    """Makes imports of earlier names work; asked last, after Python's own finders."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
