"""What an evaluator gives in another process, where its files do not exist."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from masksearch.contracts import Evaluator, OneShot, Proposal
from masksearch.executors.job import JobRun
from masksearch.masks import Mask

Outcome = dict[str, Any]


def outcome(evaluator: Evaluator, mask: Mask, workdir: Path) -> Outcome:
    """Everything that must not depend on where an evaluator runs: its description, its reports
    under a mask, and a one-shot job's."""
    job = Proposal(0, OneShot({}, {"steps": 4, "density": 0.3}), seed=1)
    record = JobRun(job, evaluator, workdir).run()
    return {
        "description": (evaluator.shape, evaluator.objectives, evaluator.protocol),
        "reports": list(evaluator(mask, seed=3, workdir=workdir)),
        "one-shot": (record.status, record.curve, record.error),
    }


@pytest.fixture
def here(tmp_path: Path) -> Callable[[Evaluator, Mask], Outcome]:
    """Takes an evaluator's `outcome` in this process."""
    return lambda evaluator, mask: outcome(evaluator, mask, tmp_path / "here")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[[Evaluator, Mask], Outcome]:
    """Pickles an evaluator and takes its `outcome` in a process of its own: in an empty folder,
    with no home and no cache."""

    def taken(evaluator: Evaluator, mask: Mask) -> Outcome:
        empty = tmp_path / "elsewhere"
        empty.mkdir()
        payload, result = empty / "payload", empty / "result"
        payload.write_bytes(cloudpickle.dumps((evaluator, mask)))
        settings = {**os.environ, "HOME": str(empty), "HF_HOME": str(empty / "hub")}
        settings["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        settings.pop("MASKSEARCH_CACHE", None)
        done = subprocess.run(
            [sys.executable, __file__, payload, result],
            cwd=empty,
            env=settings,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made: Outcome = pickle.loads(result.read_bytes())
        return made

    return taken


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    evaluator, mask = cloudpickle.loads(Path(sys.argv[1]).read_bytes())
    found = outcome(evaluator, mask, Path("work"))
    Path(sys.argv[2]).write_bytes(pickle.dumps(found))
