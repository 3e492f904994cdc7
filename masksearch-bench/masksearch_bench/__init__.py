"""Tables of masks with a known optimum, and what selectors of masks and short runs are worth.

Every name is loaded when it is first used, as those of masksearch are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from masksearch import read_public_names
from masksearch.neighbours import lazy_names

if TYPE_CHECKING:  # the public names, each written once: read below, and by type checkers
    from masksearch_bench.builder import TableSpec as TableSpec
    from masksearch_bench.builder import build as build
    from masksearch_bench.judging import Judged as Judged
    from masksearch_bench.judging import judge as judge
    from masksearch_bench.judging import strategy as strategy
    from masksearch_bench.judging import summary as summary
    from masksearch_bench.proxy import ProxyCard as ProxyCard
    from masksearch_bench.proxy import proxy_card as proxy_card
    from masksearch_bench.table import Cell as Cell
    from masksearch_bench.table import Datasheet as Datasheet
    from masksearch_bench.table import Table as Table
    from masksearch_bench.table import TableEvaluator as TableEvaluator
    from masksearch_bench.table import load as load
    from masksearch_bench.table import names as names

PUBLIC = read_public_names(__file__)
__all__ = sorted(PUBLIC)
__getattr__, __dir__ = lazy_names(globals(), PUBLIC)
