"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import numpy as np
import pandas as pd

from experiments.verify import Claim, rows, sentences

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/02_importance/README.md"
ENDS = ["mean", "low", "high"]

files = {path.stem: pd.read_csv(path) for path in RESULTS.glob("*.csv")}
fits = files["approximation"].set_index(["length", "depth", "map", "arm"])
reach = fits[fits.index.get_level_values("arm") == "no diagonal, residual"]
neither = fits[fits.index.get_level_values("arm") == "no diagonal, no residual"]
neither = neither[neither.index.get_level_values("length") > 2]
within = fits[fits.predicted < 1]
met = (within.tokens - within.predicted).abs() < 1e-9


def scored(data: str, mask: str) -> list[float]:
    """Sparsity and loss of a mask; its loss minus that of the whole mask, where it is a part."""
    found = files[f"{data}_scores"]
    row = found[(found["mask"] == mask) & (found.measure == "loss")].iloc[0]
    whole, _, part = mask.partition(", ")
    return [row.sparsity, *row[ENDS], *(minus(data, mask, whole) if part else [])]


def minus(data: str, mask: str, other: str) -> list[float]:
    """A difference of losses, with its interval."""
    found = files[f"{data}_differences"]
    found = found[(found["mask"] == mask) & (found.minus == other) & (found.measure == "loss")]
    return found[ENDS].iloc[0].tolist()


def spared(data: str, mask: str) -> list[float]:
    """What removing random cells costs more than removing the diagonal, with its interval."""
    mean, low, high = minus(data, f"{mask}, no diagonal", f"{mask}, no random cells")
    return [-mean, -high, -low]


def importance(data: str, kind: str, unit: str) -> list[float]:
    """Drop and learned scale with their intervals, and the attention."""
    found = files[f"importance_{data}"].set_index(["method", "kind", "unit"])
    drop, learned = (found.loc[(method, kind, unit), ENDS] for method in ("drop", "learned"))
    return [*drop, *learned, found.loc[("attention", kind, unit), "mean"]]


def block(data: str, whole: str, removed: str) -> Claim:
    """The four rows of a mask and what was taken out of it, as they follow each other."""
    parts = ["no diagonal", "no random cells", removed]
    values = [*scored(data, whole)]
    for part in parts:
        values += scored(data, f"{whole}, {part}")
        values += (
            [0.05] if (data, whole, part) == ("text", "star", "no diagonal") else []
        )  # margin
    lines = " ".join(f"| {part} |..." for part in parts)
    return Claim(HERE, f"| {whole} |... {lines}", values)


def gradient(data: str, unit: str) -> list[float]:
    found = files[f"importance_{data}"].set_index(["method", "kind", "unit"])
    return found.loc[("gradient", "offset", unit), ENDS].tolist()


def fit(length: int, depth: int, name: str, arm: str) -> list[float]:
    """Share of right tokens, with its interval."""
    return fits.loc[(length, depth, name, arm), ["tokens", "tokens low", "tokens high"]].tolist()


place = files["importance_text"]
place = place[(place.method == "drop") & (place.kind == "place")].iloc[0]
blind = "the last, queries blind"
steps = fits["median steps"].unstack("arm")
pairs = [
    steps[[f"diagonal, {path}", f"no diagonal, {path}"]].dropna()
    for path in ("residual", "no residual")
]
speed = [
    [*pair.mean(), float(np.exp(np.log(pair).diff(axis=1).iloc[:, 1].mean())), len(pair)]
    for pair in pairs
]
dense, dense_less = (
    files["planted_scores"]
    .query("measure == 'loss' and mask == @name")
    .filter(like="seed ")
    .iloc[0]
    for name in ("dense", "dense, no diagonal")
)
late = dense[dense > dense_less.max()]

dynamics = pd.concat(files[f"dynamics_{data}"] for data in ("planted", "text"))
dynamics = dynamics[dynamics.unit != "held-out loss"]
diagonal = dynamics[dynamics.unit == "0"]["mean"].max()
at_first = np.ceil(1000 * dynamics[dynamics.step <= 32]["mean"].max()) / 1000

CLAIMS = [
    block("planted", "dense", "no later partner"),
    block("planted", "star + partner", "no later partner"),
    block("text", "dense", "no next position"),
    block("text", "star", "no next position"),
    *sentences(
        HERE,
        {
            "at two positions too: {} of 35 cells without an error in 5 of 5 seeds": [
                (reach["exact seeds"] == 5).sum()
            ],
            "residual path ({} of 20 cells": [(neither["exact seeds"] == 5).sum()],
            "{} of {}, to the last token": [met.sum(), len(met)],
            "random table, blind queries: {} [{}, {}], bound {})": [
                *fit(8, 1, "random table", blind),
                fits.loc[(8, 1, "random table", blind), "predicted"],
            ],
            "(with the diagonal {} [{}, {}], without {} [{}, {}])": fit(
                8, 1, "random table", "diagonal, residual"
            )
            + fit(8, 1, "random table", "no diagonal, residual"),
            "as many random cells cost {} nats more [{}, {}] on planted data and {} more "
            "[{}, {}]": spared("planted", "star + partner") + spared("text", "star"),
            "minus removing random cells is {} [{}, {}]": minus(
                "text", "dense, no diagonal", "dense, no random cells"
            ),
            "cost more than the diagonal ({} [{}, {}])": spared("planted", "dense"),
        },
    ),
    *rows(
        HERE,
        {
            "partner, offset -11": importance("planted", "offset", "-11"),
            "partner, offset +11": importance("planted", "offset", "11"),
        },
    ),
    Claim(
        HERE,
        "| the key |... | diagonal |... | offset +1 |...",
        importance("planted", "special", "the key")
        + importance("planted", "offset", "0")
        + importance("planted", "offset", "1")[:1]  # its drop has no width
        + importance("planted", "offset", "1")[3:],
    ),
    *rows(
        HERE,
        {
            "offset -2": importance("text", "offset", "-2"),
            "offset +2": importance("text", "offset", "2"),
            "offset -3": importance("text", "offset", "-3"),
            "to [CLS]": importance("text", "special", "[CLS]"),
            "to [SEP]": importance("text", "special", "[SEP]"),
        },
    ),
    *sentences(
        HERE,
        {
            "| offset -1 |... | offset +1 |...": importance("text", "offset", "-1")
            + importance("text", "offset", "1"),
            "| offset +3 |... | diagonal |...": importance("text", "offset", "3")
            + importance("text", "offset", "0"),
            "by drop it is number {} [{}, {}] of 31": place[ENDS].tolist(),
            "partner's gradient is {} [{}, {}] where its drop is {}": [
                *gradient("planted", "-11"),
                importance("planted", "offset", "-11")[0],
            ],
            "over the {} maps that both fit, 99 % takes {} steps with the diagonal and {} "
            "without (geometric mean of the ratio {}); without the residual path {} and {} "
            "({} maps, {})": [speed[0][3], *speed[0][:3], *speed[1][:2], speed[1][3], speed[1][2]],
            "learning at 500 steps (loss {} to {} with {} of 16 seeds, {} at most without "
            "the diagonal)": [late.min(), late.max(), len(late), dense_less.max()],
            "diagonal never gets beyond {}": [diagonal],
            "for the first 32 steps nothing matters by more than {} nats": [at_first],
            "draws more than an even share ({} of .063)": importance("text", "offset", "0")[-1:],
        },
    ),
]

NO_CLAIM = [
    (HERE, "arXiv 2102.12871"),
    (HERE, "3 of 10 seeds, .99 and more of the tokens"),
    (HERE, ".02 of the score and .02 nats on planted data, .05 nats on text"),
    (HERE, "word frequencies alone give 5.78"),
    (HERE, ".5 at the start"),
    (HERE, "(even: .042)"),
    (HERE, "(even: .063)"),
    (HERE, "no gradient reaches stay at .5"),
    (HERE, "negative offsets show about .1 by drop"),
]
