"""From which step on does a short pre-training rank masks as a long one, or as fine-tuning does?

    python experiments/07_proxy/run.py pretrain --data FOLDER [--runs FOLDER] [--part 0/2]
    python experiments/07_proxy/run.py finetune --data FOLDER [--runs FOLDER] [--steps 800,3200]
    python experiments/07_proxy/run.py card [--runs FOLDER]

Each stage has its own `--help`; what is finished is not run again.
"""

from __future__ import annotations

import sys

import card
import finetune
import pretrain

STAGES = {"pretrain": pretrain.main, "finetune": finetune.main, "card": card.main}


def main() -> None:
    stage = sys.argv[1] if len(sys.argv) > 1 else ""
    if stage not in STAGES:
        sys.exit(f"{__doc__}\nthe stages are {', '.join(STAGES)}, got {stage!r}")
    del sys.argv[1]
    STAGES[stage]()


if __name__ == "__main__":
    main()
