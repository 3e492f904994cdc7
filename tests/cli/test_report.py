"""What `masksearch report` says of a comparison, and what has no verdict."""

import json

import pytest
from toy import ToyEvaluator, space

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Report


class Noisy(ToyEvaluator):
    """A toy whose seeds shake each mask in its own way; windows are better by 0.3."""

    def __call__(self, mask, *, seed, workdir):
        noise = (hash((str(mask).count("1"), seed)) % 7) / 1000
        better = 0.3 * str(mask).startswith("window")
        yield Report(4, {"loss": 1 + noise - better})


@pytest.fixture
def folder(tmp_path):
    candidates = {"mine": masks.window(1), **ms.masks.FAMILIES}
    kinds = {"mine": "searched"}
    ms.compare(candidates, Noisy(), run=tmp_path / "c", kinds=kinds, progress=None)
    return tmp_path / "c"


@pytest.mark.nightly
def test_verdict_of_a_comparison(folder, command):
    out, _ = command("report", folder)
    assert out.startswith(ms.Comparison.open(folder).verdict())
    assert out.startswith("mine: better than star 1.002 (")
    out, _ = command("report", folder, "--against", "all", "--json")
    found = json.loads(out)
    assert found["verdict"][0].startswith("mine: better than all 6 hand-designed families (")
    assert [row["against"] for row in found["findings"]] == list(ms.masks.FAMILIES)
    assert {row["n_seeds"] for row in found["findings"]} == {5}
    command.refused("report", folder, "--against", "every")


@pytest.mark.slow  # continuous integration runs it
@pytest.mark.nightly
def test_a_search_has_no_verdict(tmp_path, command):
    ms.search(space, ToyEvaluator(), run=tmp_path / "s", trials=2, progress=None)
    err = command.refused("report", tmp_path / "s", "--against", "all")
    assert "a search has none, since its scores chose the masks" in err


@pytest.mark.nightly
def test_runs_of_two_lengths_have_no_verdict(tmp_path, command):
    class Longer(Noisy):
        def __call__(self, mask, *, seed, workdir):
            yield Report(9, {"loss": 1.0})

    ms.compare(ms.masks.FAMILIES, Noisy(), run=tmp_path, progress=None)
    ms.compare(
        {**ms.masks.FAMILIES, "mine": masks.window(1)}, Longer(), run=tmp_path, progress=None
    )
    err = command.refused("report", tmp_path)
    assert "scores after 4 and after 9 steps cannot be compared" in err


@pytest.mark.slow
def test_sparsity_of_the_table_stands_beside_where_it_differs(tmp_path):
    class Padded(Noisy):
        shape = ms.Shape(16, 2, 2, causal=True, lengths={4: 3, 8: 1})

    candidates = {"mine": masks.window(1), "star": masks.star()}
    found = ms.compare(candidates, Padded(), run=tmp_path, seeds=range(3), progress=None)
    pairs, kept = 3 * 10 + 36, 3 * (4 + 3) + (8 + 7)
    table = 100 * (1 - (16 + 15) / 256)
    said = f"({100 * (1 - kept / pairs):.1f}% sparse, {table:.1f}% of the table, loss "
    assert said in found.verdict()
