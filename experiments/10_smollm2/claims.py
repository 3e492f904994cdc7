"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import sys
from pathlib import Path

import numpy as np

from experiments.verify import Claim

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
from verdict import PRIMARY, Results, paired_difference, tables  # noqa: E402

HERE = "experiments/10_smollm2/README.md"
results = Results(FOLDER / "results")
primary = results.against(PRIMARY, 0.95)
dense = results.novels("dense", "recovered")


def left(novels: dict[int, float]) -> float:
    """Of the distance to dense attention after recovery."""
    return paired_difference(novels, dense, 0.95).value


longer = results.stages["longer"].kv_bytes[results.searched(PRIMARY)]
judged = results.layers.groupby("arm").judged.first().sum()
recovered = left(results.novels(results.searched(PRIMARY), "recovered"))
above = results.stages["judged"].nll[results.searched(PRIMARY)]
above -= results.stages["judged"].nll["dense"]  # nats, before any recovery
native = left(dict(enumerate(results.native["novels"])))
gain = [-primary.high, -primary.low, len(dense)]
CLAIMS = [
    *(Claim(HERE, table, []) for table in tables(results).values()),
    Claim(
        HERE,
        "less than the best pattern drawn by hand, interval [{}, {}] over {} novels",
        gain,
    ),
    Claim(HERE, "the searched ones lose {} nats a token less", [-primary.value]),
    Claim(
        "README.md",
        "six full layers of SmolLM2's {} keep 25 % of the cache of 512 tokens. Searched ones "
        "lose {} nats a token {} than the best pattern drawn by hand",
        [30, -primary.value, primary.value],
    ),
    *(
        Claim(page, sentence, [above, above, np.exp(above)])
        for page, sentence in {
            "README.md": "are still {} nats {} dense attention, a perplexity {} times its",
            HERE: "{} nats {} than dense attention, a perplexity {} times its",
            "experiments/README.md": "still {} nats {} dense attention, a perplexity {}",
            "docs/decoder.md": "still {} nats {} dense attention, a perplexity {} times its",
        }.items()
    ),
    Claim(HERE, "share of the cache is {} % at 1,024", [100 * longer]),
    Claim(HERE, "the best of six arms, which judged {} masks", [judged]),
    Claim(
        "experiments/README.md",
        "SmolLM2 with six full layers of 30: searched ones lose {} nats a token {} than the best "
        "drawn by hand, on {} novels",
        [-primary.value, primary.value, len(dense)],
    ),
    Claim(
        "docs/decoder.md",
        "of SmolLM2's 30 layers six that leave 25 % of the cache's bytes and lose {} nats a "
        "token {} than the best pattern drawn by hand",
        [-primary.value, primary.value],
    ),
    Claim(HERE, "{} of the loss are left", [recovered]),
    Claim(HERE, "it stays {} behind", [native]),
]
NO_CLAIM: list[tuple[str, str]] = []
