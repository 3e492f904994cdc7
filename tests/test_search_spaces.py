"""Every ready-made space draws valid masks, is pure, and is short."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import FixedTrial

import masksearch as ms
from masksearch.masks import Mask

FOLDER = Path(__file__).parent.parent / "search_spaces"
FILES = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestSpace:
    def test_draws_masks_without_empty_rows(self, path):
        space = ms.load_function(f"{path}:space")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        drawn = set()
        for _ in range(40):
            mask = space(study.ask())
            assert isinstance(mask, Mask)
            table = ms.lower(mask, ms.Shape(64, 2, 4))
            assert table.any(-1).all()
            drawn.add(mask.digest)
        assert len(drawn) > 5

    def test_replays_from_its_parameters(self, path):
        space = ms.load_function(f"{path}:space")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        for _ in range(10):
            trial = study.ask()
            assert space(trial) == space(FixedTrial(trial.params))

    def test_is_short_and_says_how_to_run_it(self, path):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60
        assert f"masksearch search search_spaces/{path.name}:space" in text
