"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows, sentences

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/20_long/README.md"
APART = pd.read_csv(RESULTS / "differences.csv")
JUDGED = pd.read_csv(RESULTS / "means.csv").query("stage == 'judge'")
RANKS = pd.read_csv(RESULTS / "correlations.csv").set_index("decoder")
KINDS = {"planted": "planted", "smollm2": "SmolLM2"}


def compared(kind: str, budget: float, arm: str = "levels", value: str = "tasks") -> pd.Series:
    """The line of an arm minus uniform."""
    keys = {"stage": "judge", "decoders": kind, "budget": budget, "arm": arm, "value": value}
    (at,) = APART.index[(APART[list(keys)] == pd.Series(keys)).all(axis=1)]
    return APART.loc[at]


def apart(*cell: str | float, **named: str) -> list[float]:
    """The difference and the ends of its interval."""
    return compared(*cell, **named)[["difference", "low", "high"]].tolist()


def mean(budget: float, arm: str, value: str = "tasks", decoder: str = "smollm2") -> float:
    """What an arm loses on a decoder."""
    own = JUDGED[JUDGED.decoder == decoder].set_index(["budget", "arm"])
    return float(own.at[(budget, arm), value])


CLAIMS: list[Claim] = []
for (kind, budget), part in APART[APART.stage == "judge"].groupby(["decoders", "budget"]):
    cells = {arm: apart(kind, budget, arm) + apart(kind, budget, arm, "text")
             for arm in part.arm.unique()}  # fmt: skip
    CLAIMS += rows(HERE, cells, after=f"### {budget:g} of the bytes, {KINDS[kind]}")
SMOL = JUDGED[JUDGED.decoder == "smollm2"]
COLUMNS = ["niah_multikey_1", "vt", "qa_1", "text", "right"]
CLAIMS += rows(
    HERE,
    {
        f"{line['budget']:g} {line['arm']}": [line[c] for c in COLUMNS]
        for line in SMOL.to_dict("records")
    },
    after="### SmolLM2, task by task",
)
half = [-each for each in apart("planted", 0.5)]
CLAIMS += sentences(
    HERE,
    {
        "one window is {} [{}, {}] nats of the answers' tokens (p {})": [
            *apart("planted", 0.25),
            compared("planted", 0.25)["p"],
        ],
        "the Qwen3 loses {} on `pairs`, where one window loses {}, and pays with `most`, {} for "
        "{}; the Llama {} for {} on `phrase`, and {} for {} on `most`": [
            mean(0.25, arm, value, decoder)
            for decoder, values in {
                "planted-1": ("pairs", "most"),
                "planted-0": ("phrase", "most"),
            }.items()
            for value in values
            for arm in ("levels", "uniform")
        ],
        "it is better there, by {} [{}, {}]": [half[0], half[2], half[1]],
        "are right whole are {} [{}, {}] more": apart("planted", 0.5, value="right"),
        "lose {} nats at a quarter, where one window loses {} and dense attention {}": [
            mean(0.25, "levels"),
            mean(0.25, "uniform"),
            mean(1, "dense"),
        ],
        "at half {}, {} and {}": [mean(0.5, "levels"), mean(0.5, "uniform"), mean(1, "dense")],
        "tokens pay {} [{}, {}] and {} [{}, {}]": [
            *apart("smollm2", 0.25, value="text"),
            *apart("smollm2", 0.5, value="text"),
        ],
        "not shown: {} of them at a quarter, {} under one window, {} dense": [
            mean(0.25, "levels", "right"),
            mean(0.25, "uniform", "right"),
            mean(1, "dense", "right"),
        ],
        "lose {} at a quarter. Searched": [mean(0.25, "every n-th")],
        "full or narrow, lose {}": [mean(0.25, "narrow")],
        "masks is {} [{}, {}] on the Llama, {} [{}, {}] on": [
            *RANKS.loc["planted-0", ["rank", "low", "high"]],
            *RANKS.loc["planted-1", ["rank", "low", "high"]],
        ],
    },
)
CLAIMS += [
    Claim(
        "README.md",
        "On SmolLM2 windows by layer, found by `allocate`, lose {}; on planted decoders, the "
        "planned test, not shown | minus one window, nats of answers: {} [{}, {}], {} [{}, {}] |",
        [apart("smollm2", 0.25)[0], *apart("smollm2", 0.25), *apart("planted", 0.25)],
    ),
    Claim(
        "docs/does_search_pay.md",
        "on SmolLM2 answers lose {} nats {} than with one window; on planted decoders",
        [abs(apart("smollm2", 0.25)[0]), apart("smollm2", 0.25)[0]],
    ),
    Claim(
        "docs/decoder.md",
        "positions the plan's answers lose {} nats a token, those of searched full layers beside "
        "one window, which engines serve, {}, of one wider window {}, of evenly spaced full "
        "layers {}",
        [mean(0.25, arm) for arm in ("levels", "narrow", "uniform", "every n-th")],
    ),
    Claim(
        "experiments/README.md",
        "the planned test: {} [{}, {}] nats of the answers' tokens; at half of them, and on "
        "SmolLM2 at a quarter, levels lose {}: {} [{}, {}] and {} [{}, {}], one search each; "
        "every n-th layer full loses {} [{}, {}] {} than the window",
        [
            *apart("planted", 0.25),
            apart("smollm2", 0.25)[0],
            *apart("planted", 0.5),
            *apart("smollm2", 0.25),
            *apart("smollm2", 0.25, "every n-th"),
            apart("smollm2", 0.25, "every n-th")[0],
        ],
    ),
]
NO_CLAIM = [(HERE, "The pilot")]
