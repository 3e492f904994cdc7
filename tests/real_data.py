"""Real texts and tasks, where there are some: GLUE, SQuAD, SWAG, WikiText-2, novels."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MASKSEARCH_DATA", "nowhere"))
real = pytest.mark.skipif(
    "MASKSEARCH_DATA" not in os.environ, reason="MASKSEARCH_DATA (a data folder) is not set"
)
