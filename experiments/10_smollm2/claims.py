"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import sys
from pathlib import Path

from experiments.verify import Claim

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from verdict import (  # noqa: E402
    PRIMARY,
    WIDEST,
    PairedDifference,
    Results,
    paired_difference,
    tables,
    window_minus_searched,
)

HERE = "experiments/10_smollm2/README.md"
results = Results(FOLDER / "results")
primary = results.against(PRIMARY, 0.95)
dense = results.novels("dense", "recovered")


def left(novels: dict[int, float]) -> float:
    """Of the distance to dense attention after recovery."""
    return paired_difference(novels, dense, 0.95).value


def signed(difference: PairedDifference, sign: float = 1.0) -> list[float]:
    """Size, ends of the interval, and what its comparative has the sign of: x [low, high] less."""
    ends = sorted(sign * end for end in (difference.low, difference.high))
    return [sign * difference.value, *ends, difference.value]


def above(name: str) -> list[float]:
    """What a mask loses against dense attention before any recovery."""
    pair = results.novels(name, "windows"), results.novels("dense", "windows")
    return signed(paired_difference(*pair, 0.95))[:3]


longer = results.stages["windows_longer"].kv_bytes[results.searched(PRIMARY)]
judged = results.layers.groupby("arm").judged.first().sum()
recovered = left(results.novels(results.searched(PRIMARY), "recovered"))
trained = results.novels(f"{WIDEST} {PRIMARY}", "windows_recovered")
of_searched = results.novels(results.searched(PRIMARY), "recovered")
apart = paired_difference(trained, of_searched, 0.95)
apart_values = [apart.value, apart.low, apart.high]
assert apart.low < 0 < apart.high  # "not told apart"
native = left(dict(enumerate(results.native["novels"])))
at_budgets = {n: window_minus_searched(results, n, 0.95) for n in results.budgets}
window = at_budgets[PRIMARY]
gain, behind = signed(primary, -1), signed(window, -1)  # of searched layers: less, more
behind[-1] = -window.value
searched_loss, window_loss = above(results.searched(PRIMARY)), above(f"{WIDEST} {PRIMARY}")
every = sum(each.high < 0 for each in at_budgets.values())
reach, novels = results.reach(PRIMARY), len(dense)
ahead = [
    sum(
        results.novels(f"{WIDEST} {n}", "windows")[novel] < loss
        for novel, loss in results.novels(results.searched(n), "windows").items()
    )
    for n in results.budgets
]
assert every == len(results.budgets)  # "at all six budgets"
assert [novels - 1, *[novels] * 5] == ahead
CLAIMS = [
    *(Claim(HERE, table, []) for table in tables(results).values()),
    Claim(
        HERE,
        "the searched ones lose {} nats a token less than the best of five hand-designed sets "
        "(first, middle, last, every n-th in two phases), interval [{}, {}] over {} novels",
        [*gain[:3], novels],
    ),
    Claim(
        HERE,
        "window({})` in all 30 layers, of no more bytes, loses {} [{}, {}] nats less still",
        [reach, *behind[:3]],
    ),
    Claim(HERE, "the searched layers lose {} [{}, {}] nats", searched_loss),
    Claim(HERE, "nats, the window {} [{}, {}]", window_loss),
    Claim(HERE, "The window is ahead on all {} novels at five budgets, and on {} at", [11, 10]),
    Claim(
        HERE,
        "(dense {} there, {} before)",
        [results.stages[stage].nll["dense"] for stage in ("windows", "judged")],
    ),
    Claim(
        "docs/does_search_pay.md",
        "| a decoder whose cache must shrink, text like novels | an 8-bit cache (q8_0), then "
        "one wide window in every layer | measured on one decoder; searched layers lose {} nats a "
        "token {} than that window | "
        "[17](../experiments/17_served/README.md), [10](../experiments/10_smollm2/README.md) |",
        [tuple(behind[:3]), tuple(behind[:3])],
    ),
    Claim(
        "docs/full_or_local.md",
        "on novels that window loses {} than searched full layers",
        [window.high],
    ),
    Claim(
        "docs/decoder.md",
        "six searched full layers lose {} than five hand-designed sets of full layers, but {} "
        "[{}, {}] nats a token {} than `columns(4) | window({})` in every layer",
        [gain[-1], *behind, reach],
    ),
    Claim(
        "experiments/README.md",
        "one wider window in every layer loses {} nats a token {} than the searched layers",
        [tuple(behind[:3]), tuple(-each for each in (behind[0], *behind[2:0:-1]))],
    ),
    Claim(HERE, "(window minus searched {} [{}, {}])", apart_values),
    Claim(HERE, "and {} of the window's: there", [left(trained)]),
    Claim(
        HERE,
        "ahead of the searched layers on {} of {} novels",
        [sum(trained[novel] < loss for novel, loss in of_searched.items()), novels],
    ),
    Claim(HERE, "share of the cache is {} % at 1,024", [100 * longer]),
    Claim(HERE, "the best of six arms, which judged {} masks", [judged]),
    Claim(HERE, "{} of the searched layers' loss are left", [recovered]),
    Claim(HERE, "it stays {} behind", [native]),
]
NO_CLAIM: list[tuple[str, str]] = []
