"""Shared by all tests: importable helpers, quick examples, quiet and offline libraries."""

import os
import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

for folder in ("", "contracts", "faults"):  # for `mask_trees`, `toy`, `killing`
    sys.path.insert(0, str(Path(__file__).parent / folder))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when transformers is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # tiny tensors: threads only add overhead, and noise between runs
settings.register_profile(
    "masksearch", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("masksearch")
