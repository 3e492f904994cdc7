"""Tables of masks with a known optimum, and what selectors of masks are worth on them."""

from masksearch.bench.build import TableSpec, build
from masksearch.bench.judge import Judged, judge, strategy, summary
from masksearch.bench.table import Cell, Datasheet, Table, TableEvaluator, load, names

__all__ = [
    "Cell",
    "Datasheet",
    "Judged",
    "Table",
    "TableEvaluator",
    "TableSpec",
    "build",
    "judge",
    "load",
    "names",
    "strategy",
    "summary",
]
