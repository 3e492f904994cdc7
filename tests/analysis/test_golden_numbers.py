"""Means, bounds and p-values of fixed arrays: claims are recorded, so no digit of them may move.

Source of tests/golden/claims.json: what this file computed at 77cae22, but for the words of a
verdict's first lines, which name the opponents' scores since, and its line on the best
hand-designed mask.
`python tests/analysis/test_golden_numbers.py` prints what it computes now.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksearch import Comparison, masks
from masksearch.analysis.row_scores import RowScores
from masksearch.analysis.search_curves import compare_searches, curves_of
from masksearch.analysis.stats import (
    PairedDifference,
    estimate,
    holm,
    holm_levels,
    paired_difference,
)
from masksearch.contracts import Evaluate, Objective, Record

GOLDEN = Path(__file__).parents[1] / "golden" / "claims.json"
GOALS = (Objective("score", "max", 0.3), Objective("sparsity", "max", 0.0))
MASKS = {  # name -> mask, sparsity, mean score
    "front #1": (masks.window(1), 0.81, 0.74),
    "front #4": (masks.window(2), 0.70, 0.75),
    "star": (masks.star(), 0.80, 0.70),
    "strided": (masks.strided(), 0.57, 0.745),
    "scrambled front #1": (masks.random_keys(2, seed=0), 0.81, 0.69),
    "scrambled front #4": (masks.random_keys(3, seed=1), 0.70, 0.73),
    "dense": (masks.full(), 0.0, 0.76),
}
KINDS = dict(
    zip(MASKS, ("searched",) * 2 + ("hand-designed",) * 2 + ("control",) * 3, strict=True)
)


def rows_of(run: int, mean: float) -> RowScores:
    """Two parts of 80 and 50 rows, answered with about that share."""
    draws, easy = np.random.default_rng(run), np.random.default_rng(99)
    parts = {"a": easy.random(80), "b": easy.random(50)}
    scores = {
        p: (0.6 * v + 0.4 * draws.random(len(v)) < mean).astype(float) for p, v in parts.items()
    }
    return RowScores(scores, {"a": 0.6, "b": 0.4}, {"a": "x", "b": "y"})


def compared(folder: Path, *, rows: bool, seeds: int = 4, seedless: bool = False) -> Comparison:
    """A front that is judged again, with or without scores row by row."""
    records: list[Record] = []
    for at, (name, (mask, sparsity, mean)) in enumerate(MASKS.items()):
        for seed in range(seeds):
            scores, number = rows_of(10 * at + seed, mean), len(records)
            if rows:
                scores.save(folder / str(number))
            records.append(
                Record(
                    number, "done", Evaluate(mask), seed=seed, protocol="p", fingerprint=name,
                    measures={"sparsity": sparsity}, name=name, role="compared", origin="compare",
                    values={"score": scores.score},
                    artifacts={"rows": f"{number}/rows.safetensors"} if rows else {},
                )
            )  # fmt: skip
    return Comparison(
        tuple(records), GOALS, folder, kinds=KINDS, seedless=seedless,
        promised={"front #1": 0.8, "front #4": 0.79},
    )  # fmt: skip


def numbers(value: Any, *names: str) -> list[float]:
    return [float(getattr(value, name)) for name in names]


def of_difference(found: PairedDifference) -> list[float]:
    return numbers(found, "value", "low", "high", "p_value", "sd", "row_error", "level")


def of_comparison(comparison: Comparison) -> dict[str, Any]:
    fronts = comparison.fronts
    frame = comparison.frame().set_index("mask")
    return {
        "scores": {n: frame.loc[n, ["score", "score low", "score high"]].tolist() for n in MASKS},
        "findings": {
            against: {
                f"{f.mask} - {f.against}": [*of_difference(f.difference), f.adjusted]
                for f in comparison.findings(against=against)
            }
            for against in ("nearest", "all")
        },
        "volumes": {
            name: [*numbers(arm.hypervolume, "low", "high"), *arm.front]
            for name, arm in fronts.arms.items()
        },
        "chances": dict(fronts.chances),
        "lost": numbers(fronts.lost, "low", "high"),
        "fronts": {
            f.against: [*of_difference(f.difference), f.adjusted, f.outcome]
            for f in fronts.findings
        },
        "verdict": comparison.verdict().splitlines(),
    }


def of_searches() -> list[Any]:
    """Three strategies, four searches each."""
    searches = {}
    for at, name in enumerate(("random", "tpe", "evolution")):
        found = {
            s: np.random.default_rng(9 * at + s).uniform(0.4, 0.6 + at / 9, 9) for s in range(4)
        }
        searches[name] = {
            seed: [
                Record(
                    k, "done", Evaluate(masks.star()), origin=name, values={"score": score},
                    measures={"sparsity": 0.5 + k / 40}, seconds=1.0 + at / 7,
                )
                for k, score in enumerate(scores)
            ]
            for seed, scores in found.items()
        }  # fmt: skip
    return [
        [
            each.strategy, each.outcome, each.finding.adjusted if each.finding else math.nan,
            *numbers(each.at_trials, "low", "high"), *numbers(each.at_seconds, "low", "high"),
            *(of_difference(each.finding.difference) if each.finding else []),
        ]
        for each in compare_searches(curves_of(searches, GOALS))
    ]  # fmt: skip


def computed(folder: Path) -> Any:
    """All of it as plain data; what is not finite is text."""
    a, b = ({s: rows_of(20 * k + s, 0.7 + k / 20) for s in range(5)} for k in (0, 1))
    scores = [{s: r.score for s, r in rows.items()} for rows in (a, b)]
    p_values = [0.04, 0.01, math.nan, 0.2, 0.011]
    found = {
        "mean": numbers(estimate([0.71, 0.74, 0.735]), "low", "high"),
        "mean, ticks": numbers(estimate([0.71, 0.71, 0.71], tick=0.01), "low", "high"),
        "mean, rows": numbers(estimate([*scores[0].values()], rows=a.values()), "low", "high"),
        "mean, one run": numbers(estimate([scores[0][0]], 0.9, rows=[a[0]]), "low", "high"),
        "pair": of_difference(paired_difference(*scores, 0.98)),
        "pair, ticks": of_difference(paired_difference(*scores, tick=0.02)),
        "pair, rows": of_difference(paired_difference(*scores, rows_a=a, rows_b=b)),
        "pair, some rows": of_difference(
            paired_difference(*scores, rows_a=a, rows_b={s: b[s] for s in (0, 3)})
        ),
        "pair, rows alone": of_difference(
            paired_difference(*scores, rows_a=a, rows_b=b, seedless=True)
        ),
        "holm": holm(p_values),
        "holm levels": holm_levels(p_values),
        "seeds": of_comparison(compared(folder / "seeds", rows=False)),
        "rows": of_comparison(compared(folder / "rows", rows=True)),
        "rows alone": of_comparison(compared(folder / "one", rows=True, seeds=1, seedless=True)),
        "searches": of_searches(),
    }
    return plain(found)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    """Path -> number or text."""
    if not isinstance(value, dict | list):
        return {at: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for name, each in items for k, v in leaves(each, f"{at}/{name}").items()}


@pytest.mark.slow
def test_no_number_has_moved(tmp_path):
    wanted = leaves(json.loads(GOLDEN.read_text(encoding="utf-8")))
    found = leaves(computed(tmp_path))
    texts = {k for k, v in wanted.items() if isinstance(v, str)}
    assert found.keys() == wanted.keys()
    assert {k: found[k] for k in texts} == {k: wanted[k] for k in texts}
    for place in wanted.keys() - texts:
        assert found[place] == pytest.approx(wanted[place], rel=1e-12, abs=1e-12), place


if __name__ == "__main__":
    import tempfile

    print(json.dumps(computed(Path(tempfile.mkdtemp())), indent=1))
