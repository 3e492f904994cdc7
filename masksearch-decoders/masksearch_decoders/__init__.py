"""Decoders: judged by text and tasks, their layers or heads allotted, their masks served.

    from masksearch_decoders import CausalEvaluator, allocate

Every name is loaded when it is first used, as those of masksearch are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from masksearch import read_public_names
from masksearch.neighbours import lazy_names

if TYPE_CHECKING:  # the public names, each written once: read below, and by type checkers
    from masksearch_decoders.cache.kv_cache import kv_bytes as kv_bytes
    from masksearch_decoders.cache.masked_cache import MaskedCache as MaskedCache
    from masksearch_decoders.causal import CausalEvaluator as CausalEvaluator
    from masksearch_decoders.engine import Serving as Serving
    from masksearch_decoders.engines.gguf import to_gguf as to_gguf
    from masksearch_decoders.native import from_native as from_native
    from masksearch_decoders.native import to_native as to_native
    from masksearch_decoders.plan import Plan as Plan
    from masksearch_decoders.planner import allocate as allocate
    from masksearch_decoders.served import EngineEvaluator as EngineEvaluator
    from masksearch_decoders.tasks.recall import Recall as Recall

PUBLIC = read_public_names(__file__)
__all__ = sorted(PUBLIC)
__getattr__, __dir__ = lazy_names(globals(), PUBLIC)
