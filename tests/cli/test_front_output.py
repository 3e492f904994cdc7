"""What a search prints of its front."""

import pytest
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.cli.output import print_front

LAYER = masks.window(0) | masks.stride(5) | masks.global_tokens(1)
LONG = masks.per_layer([LAYER, LAYER, LAYER | masks.stride(3)])


class Three(ToyEvaluator):
    shape = ms.Shape(16, 3, 2)


@pytest.mark.nightly
def test_long_masks_are_printed_whole_and_a_terminal_shows_drawings(tmp_path, capsys, monkeypatch):
    study = ms.search(
        lambda trial: LONG if trial.suggest_int("a", 0, 1) else masks.window(1),
        Three(),
        run=tmp_path / "run",
        trials=6,
        strategy="random",
        progress=None,
    )
    print_front(study, as_json=False)
    plain = capsys.readouterr().out
    [number] = [each.number for each in study.frontier() if each.mask == LONG]
    assert f"#{number}: {LONG}\n" in plain
    assert "██" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    print_front(study, as_json=False)
    drawn = capsys.readouterr().out
    assert drawn.count("% sparse") == len(study.frontier())
    assert "██" in drawn
    monkeypatch.setenv("NO_COLOR", "1")
    print_front(study, as_json=False)
    assert "██" not in capsys.readouterr().out
