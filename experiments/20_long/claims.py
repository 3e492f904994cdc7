"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

from pathlib import Path

import pandas as pd

from experiments.verify import Claim, rows, sentences

RESULTS = Path(__file__).parent / "results"
HERE = "experiments/20_long/README.md"
APART = pd.read_csv(RESULTS / "differences.csv")
MEANS = pd.read_csv(RESULTS / "means.csv")
JUDGED, LONGEST = (MEANS[MEANS.stage == stage] for stage in ("judge", "longest"))
RANKS = pd.read_csv(RESULTS / "correlations.csv").set_index("decoder")
KINDS = {"planted": "planted", "smollm2": "SmolLM2"}


def compared(
    kind: str, budget: float, arm: str = "levels", value: str = "tasks", stage: str = "judge"
) -> pd.Series:
    """The line of an arm minus uniform."""
    keys = {"stage": stage, "decoders": kind, "budget": budget, "arm": arm, "value": value}
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
EVERY = "every n-th"
SHOWN = {
    budget: [end for value in ("tasks", "text", "right")
             for end in apart("smollm2", budget, EVERY, value=value, stage="longest")]
    for budget in (0.25, 0.5)
}  # fmt: skip
CLAIMS += rows(
    HERE,
    {"a quarter": SHOWN[0.25], "half": SHOWN[0.5]},
    after="## SmolLM2 at 8,192 positions",
)
WHAT_RAN = {path.stem.split("_")[-1] for path in RESULTS.glob("longest_*.csv")}
assert WHAT_RAN == {"dense", "uniform", EVERY}  # levels and narrow were cut
AHEAD = SHOWN[0.5][:3]  # at half of 8,192 positions
SEEN = apart("smollm2", 0.5, EVERY)
assert SEEN[1] < 0 < SEEN[2]  # at half of 2,048 they "are not told from it"
long_mean = LONGEST.set_index(["budget", "arm"])["tasks"]
RIGHT = [mean(*cell, "right") for cell in ((0.25, "levels"), (0.25, "uniform"))]
RIGHT += [mean(*cell, "right") for cell in ((0.5, "levels"), (0.5, "uniform"), (1, "dense"))]
BY_TASK = [
    mean(budget, arm, task)
    for task in ("vt", "niah_multikey_1", "qa_1")
    for budget, arm in ((0.5, "levels"), (1, "dense"), (0.5, "uniform"))
]
LESS = {}  # what an arm loses less than one window at a quarter, and the sign
for arm in ("levels", "narrow"):
    value, low, high = apart("smollm2", 0.25, arm)
    LESS[arm] = [-value, -high, -low, value]
    right = apart("smollm2", 0.25, arm, value="right")
    assert right[1] < 0 < right[2]  # "not told apart"
low, high = apart("planted", 0.25)[1:]
assert low < 0 < high  # "shows no difference"
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
        "not shown: {} of them at a quarter, {} under one window; at half {} and {}; dense {}": (
            RIGHT
        ),
        "tracing (`vt`) {}, {} and {}, a needle among others (`niah_multikey_1`) {}, {} and {}, "
        "questions (`qa_1`) {}, {} and {}.": BY_TASK,
        "evenly spaced full layers are {} nats ahead": [-AHEAD[0]],
        "lose {} nats under every n-th, {} under one window, {} under dense attention; at a "
        "quarter {} and {}": [
            *long_mean[[(0.5, EVERY), (0.5, "uniform"), (1, "dense")]],
            *long_mean[[(0.25, EVERY), (0.25, "uniform")]],
        ],
        "lose {} at a quarter. Searched": [mean(0.25, "every n-th")],
        "full or narrow, which engines serve, lose {}": [mean(0.25, "narrow")],
        "masks is {} [{}, {}] on the Llama, {} [{}, {}] on": [
            *RANKS.loc["planted-0", ["rank", "low", "high"]],
            *RANKS.loc["planted-1", ["rank", "low", "high"]],
        ],
    },
)
CLAIMS += [
    Claim(
        "docs/does_search_pay.md",
        "| one whose answers stand far back | `allocate --tasks` | the planned test does not "
        "show it; measured on one decoder: answers lose {} nats a token {} than under one window "
        "| [20](../experiments/20_long/README.md) |",
        [tuple(LESS["levels"][:3]), tuple(apart("smollm2", 0.25))],
    ),
    Claim(
        "docs/decoder.md",
        "positions the plan's answers lose {} nats a token, those of searched full layers beside "
        "one window, which engines serve, {}, of one wider window {}, of evenly spaced full "
        "layers {}",
        [mean(0.25, arm) for arm in ("levels", "narrow", "uniform", "every n-th")],
    ),
    Claim(
        "docs/decoder.md",
        "At half of 8,192 positions, where no plan was judged, evenly spaced full layers are {} "
        "[{}, {}] nats {} of one window.",
        [-AHEAD[0], -AHEAD[2], -AHEAD[1], -AHEAD[0]],
    ),
    Claim(
        "experiments/README.md",
        "the planned test does not show it; on SmolLM2 answers lose {} nats a token {} than under "
        "one window |",
        [tuple(LESS["levels"][:3]), tuple(apart("smollm2", 0.25))],
    ),
]
