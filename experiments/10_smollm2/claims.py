"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import sys
from pathlib import Path

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
    return paired_difference(novels, dense, 0.95).mean


recovered = left(results.novels(results.searched(PRIMARY), "recovered"))
native = left(dict(enumerate(results.native["novels"])))
gain = [-primary.high, -primary.low, len(dense)]
CLAIMS = [
    *(Claim(HERE, table, []) for table in tables(results).values()),
    Claim(
        HERE,
        "less than the best pattern drawn by hand, interval [{}, {}] over {} novels",
        gain,
    ),
    Claim(HERE, "the searched ones lose {} nats a token less", [-primary.mean]),
    Claim("README.md", "lose {} nats a token less than the best pattern", [-primary.mean]),
    Claim(
        "experiments/README.md",
        "searched ones lose {} nats a token less than the best drawn by hand, on {} novels",
        [-primary.mean, len(dense)],
    ),
    Claim("docs/decoder.md", "lose {} nats a token less than the best", [-primary.mean]),
    Claim(HERE, "{} of the loss are left", [recovered]),
    Claim(HERE, "it stays {} behind", [native]),
]
NO_CLAIM: list[tuple[str, str]] = []
