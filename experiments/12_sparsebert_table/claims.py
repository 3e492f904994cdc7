"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import json
import re
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from experiments.verify import Claim, interval

HERE = "experiments/12_sparsebert_table/README.md"
RESULTS = Path(__file__).parent / "results"
TABLE = json.loads((Path(__file__).parent / "printed.json").read_text(encoding="utf-8"))
for line in TABLE["rows"]:
    line["scores"] = dict(zip(TABLE["columns"], line["scores"], strict=True))
FAMILIES = {line["family"]: line for line in TABLE["rows"] if "family" in line}
PRINTED = {line["name"]: line for line in TABLE["rows"]} | FAMILIES

earlier = pd.read_csv(Path(__file__).parents[1] / "09_minilm_glue" / "results" / "scores.csv")
rte = earlier[earlier.task == "RTE"]

CLAIMS = [
    Claim(
        HERE,
        "the dense model of 3 epochs is at {} [{}, {}], a constant answer at {}",
        [*interval(rte.score), rte.majority.iloc[0]],
    ),
]


NAMES = {  # the paper's row that a mask stands for -> what it is: gates, and where they are cut
    name: f"{kind} gates, {PRINTED[name]['sparsity']} %"
    for prefix, kind in (("DAM_u", "symmetric"), ("DAM_s", "Toeplitz"))
    for name in PRINTED
    if name.startswith(prefix)
}


def tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b over the last axis."""
    x, y = (np.sign(each[..., None] - each[..., None, :]) for each in (x, y))
    ends = (-2, -1)
    return (x * y).sum(ends) / np.sqrt((x * x).sum(ends) * (y * y).sum(ends))


def row(mask: str, runs: pd.DataFrame) -> list[float]:
    """Of a mask: printed and effective sparsity in percent, scores by seed, mean and interval,
    the printed score."""
    scores = runs.sort_values("seed").score
    paper = PRINTED.get(mask)
    found = [paper["sparsity"]] if paper else []
    found += [100 * runs.effective_sparsity.iloc[0], *scores]
    found += interval(scores) if len(scores) > 2 else [scores.mean()]
    return found + ([paper["scores"][runs.task.iloc[0]]] if paper else [])


scores = pd.read_csv(RESULTS / "scores.csv")
for (setting, task, mask), runs in scores.groupby(["setting", "task", "mask"]):
    if setting == "none":
        cell = f"| {NAMES.get(mask, mask)} |..."
        CLAIMS.append(Claim(HERE, cell, row(mask, runs), after=f"### {task}"))
first = scores[scores.seed == 0]
wide = first.pivot(index=["task", "mask"], columns="setting", values="score")
again = scores[scores.setting == "finetune"].sort_values("seed")
for task, cells in wide.groupby("task"):
    each = cells.dropna(subset=["finetune"]).droplevel("task")
    for mask, values in each.iterrows():
        known = [values[setting] for setting in ("none", "recover") if setting in each]
        tuned = again[(again.task == task) & (again["mask"] == mask)].score
        shown = [value for value in (*known, *tuned) if np.isfinite(value)]
        cell = f"| {NAMES.get(mask, mask)} |..."
        CLAIMS.append(Claim(HERE, cell, shown, after=f"### Settings on {task}"))
    for setting in [name for name in ("none", "recover") if name in each]:
        if each[setting].count() > 1:
            found = tau(each[setting].to_numpy(), each.finetune.to_numpy())
            CLAIMS.append(Claim(HERE, f"`{setting}` on {task}: tau-b {{}}", [found]))
families = again[again["mask"].isin(FAMILIES) & (again.task == "STS-B")].score
CLAIMS.append(Claim(HERE, "no family gets above {}", [families.max()]))
card = (RESULTS / "proxy.txt").read_text(encoding="utf-8").split("\nSTS-B\n")[1]
ceiling = re.search(r"Noise ceiling.*, (\S+) \[(\S+), (\S+)\] within bands", card)
within = re.findall(r"steps \(\w+, .*?, (\S+) \[(\S+), (\S+)\] within bands between", card)
assert ceiling is not None
figures = [float(number) for found in (*within, ceiling.groups()) for number in found]
text = "`none` {} [{}, {}], `recover` {} [{}, {}], the ceiling {} [{}, {}]"
CLAIMS.append(Claim(HERE, text, figures))
trusted = "trusts a hundred steps" if "Valid at 100 steps (recover)" in card else "trusts none"
CLAIMS.append(
    Claim(
        "docs/adapting.md",
        f"On MiniLM and STS-B, {{}} masks and {{}} seeds, it {trusted} of recovery, and "
        '`"none"` not among masks of similar density ([12_sparsebert_table]',
        [
            again[again.task == "STS-B"]["mask"].nunique(),
            again[again.task == "STS-B"].seed.nunique(),
        ],
    )
)
mean = scores[(scores.task == "STS-B") & (scores.setting == "none")]
mean = mean.groupby("mask").score.mean()
lost = [
    PRINTED["DAM_u 1e-4"]["sparsity"],
    mean["dense"] - mean["DAM_u 1e-4"],
    mean["dense"] - mean["strided"],
]
text = "Symmetric gates cut at {} % keep a fifth of the pairs and lose {} of dense's Spearman "
text += "correlation; strided, the best family, keeps twice as many and loses {}"
CLAIMS.append(Claim(HERE, text, lost))
taus = json.loads((RESULTS / "table.json").read_text())["tau_b"]
average = taus.pop("average")
CLAIMS.append(Claim(HERE, "prints them with tau-b {} [{}, {}]", average))
text = "DAM's stand above the families, the rest does not: tau-b with the paper's order is {}"
CLAIMS.append(Claim("experiments/README.md", text, [tuple(average)]))
for name, each in taus.items():
    CLAIMS.append(Claim(HERE, f"order by {name}: tau-b {{}} [{{}}, {{}}]", each))
judged = scores[(scores.setting == "none") & (scores["mask"] != "dense")]
ours = judged.groupby(["mask", "task"]).score.mean().unstack()
printed = {name: fmean(PRINTED[name]["scores"][task] for task in ours) for name in ours.index}
both = pd.DataFrame({"ours": ours.mean(axis=1), "paper": printed})
dam = both.index.str.startswith("DAM")
within = [tau(part.ours.to_numpy(), part.paper.to_numpy()) for part in (both[dam], both[~dam])]
text = "Among the eight of DAM tau-b is {}, among the six families {}"
CLAIMS.append(Claim(HERE, text, within))
draws = np.random.default_rng(0).integers(0, len(both), (10_000, len(both)))
resampled = tau(*np.moveaxis(both.to_numpy()[draws], -1, 0))
over_masks = list(np.quantile(resampled, [0.025, 0.975]))
label = tau(dam.astype(float), both.paper.to_numpy())
above = {name: both[name][dam].to_numpy()[:, None] > both[name][~dam].to_numpy() for name in both}
assert above["ours"].all()
CLAIMS += [
    Claim(HERE, "the interval is [{}, {}]", over_masks),
    Claim(
        HERE,
        "symmetric gates cut at {} and {} %, beat",
        [PRINTED[f"DAM_u {each}"]["sparsity"] for each in ("1e-4", "1e-3")],
    ),
    Claim(HERE, "already has a tau-b of {} with the paper's order", [label]),
    Claim(HERE, "in the paper {} % of such pairs", [100 * above["paper"].mean()]),
]
sparsest = 100 * judged[judged.task == "CoLA"].effective_sparsity.max()
CLAIMS.append(Claim(HERE, "One key in every row leaves out {} %", [sparsest]))
CLAIMS.append(Claim(HERE, "an F1 of {}", [2 * 128 / (193 + 128)]))  # of "paraphrase" always
