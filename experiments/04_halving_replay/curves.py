"""The learning curves that `run.py` replays: recorded here, or taken from a stored study."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd

import masksearch as ms
from masksearch import masks
from masksearch.masks.measure import fingerprint, measures
from masksearch.user_code import load_function


@dataclass(frozen=True)
class Curve:
    """One recorded training."""

    space: str
    mask: str
    seed: int
    sparsity: float
    score: float  # of the last report
    last: int  # its step
    seconds: float
    losses: dict[int, float]  # by step, without the last report

    @property
    def density(self) -> float:
        return 1 - self.sparsity


def drawn(
    spaces: Path, counts: Mapping[str, int], shape: ms.Shape
) -> Iterator[tuple[str, masks.Mask]]:
    """The families, dense attention, and so many distinct random masks of every space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seen = set()
    for mask in (masks.full(), *ms.masks.FAMILIES.values()):
        seen.add(fingerprint(mask, shape))
        yield "families", mask
    for number, (name, count) in enumerate(counts.items()):
        space = load_function(f"{spaces / name}.py:space")
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number))
        kept = 0
        while kept < count:
            mask = space(study.ask())
            bits = fingerprint(mask, shape)
            if bits not in seen:
                seen.add(bits)
                kept += 1
                yield name, mask


def record(
    path: Path,
    evaluator: ms.PlantedEvaluator,
    spaces: Path,
    counts: Mapping[str, int],
    seed: int,
) -> None:
    """Trains what the file does not hold yet, and adds a row after every training."""
    done = {(curve.mask, curve.seed) for curve in read(path)} if path.is_file() else set()
    for space, mask in drawn(spaces, counts, evaluator.shape):
        if (str(mask), seed) in done:
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            *early, last = evaluator(mask, seed=seed, workdir=Path(folder))
        curve = Curve(
            space,
            str(mask),
            seed,
            measures(mask, evaluator.shape)["sparsity"],
            last.values["score"],
            last.step,
            time.monotonic() - started,
            {report.step: report.values["loss"] for report in early},
        )
        write(path, [curve])


def stored(runs: Sequence[Path], protocol: str, score: str, seed: int) -> list[Curve]:
    """The trainings of stored studies: those of one protocol and seed whose curve is whole."""
    found: dict[str, Curve] = {}
    for run in runs:
        for record in ms.Study(run).records():
            whole = len(record.curve) > 4 and record.curve[0].step <= record.step // 100
            alike = record.protocol == protocol and record.seed == seed
            if record.status == "done" and record.mask is not None and alike and whole:
                found[record.fingerprint] = Curve(
                    run.name,
                    str(record.mask),
                    seed,
                    record.measures["sparsity"],
                    record.values[score],
                    record.step,
                    record.seconds,
                    {
                        report.step: report.values["loss"]
                        for report in record.curve[:-1]
                        if "loss" in report.values
                    },
                )
    return list(found.values())


def write(path: Path, curves: Sequence[Curve]) -> None:
    """Adds rows to a file; the first ones bring its header."""
    rows = [
        {
            **{name: value for name, value in vars(curve).items() if name != "losses"},
            "sparsity": f"{curve.sparsity:.6f}",
            "score": f"{curve.score:.5f}",
            "seconds": f"{curve.seconds:.2f}",
            **{f"loss@{step}": f"{loss:.5f}" for step, loss in sorted(curve.losses.items())},
        }
        for curve in curves
    ]
    fresh = not path.is_file()
    pd.DataFrame(rows).to_csv(path, mode="a", header=fresh, index=False, lineterminator="\n")


def read(path: Path) -> list[Curve]:
    """The recorded trainings of a file."""
    found = []
    for row in pd.read_csv(path, float_precision="round_trip").to_dict("records"):
        steps = [name for name in row if name.startswith("loss@")]
        losses = {int(name.removeprefix("loss@")): row.pop(name) for name in steps}
        found.append(Curve(**row, losses=losses))
    return found
