"""What pages say about this experiment, recomputed from results/: see experiments/verify.py."""

import runpy
from pathlib import Path

from experiments.verify import Claim, rows

FOLDER = Path(__file__).parent
HERE = "experiments/18_selectors/README.md"
CELLS = runpy.run_path(str(FOLDER / "page.py"))["cells"]()
CLAIMS: list[Claim] = rows(HERE, CELLS, after="### Regret")
NO_CLAIM: list[tuple[str, str]] = []
