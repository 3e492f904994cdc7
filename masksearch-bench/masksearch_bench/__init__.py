"""Tables of masks with a known optimum, and what selectors of masks are worth on them."""

from masksearch_bench.build import TableSpec, build
from masksearch_bench.judge import Judged, judge, strategy, summary
from masksearch_bench.table import Cell, Datasheet, Table, TableEvaluator, load, names

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
