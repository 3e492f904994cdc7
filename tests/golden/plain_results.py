"""Records, studies and comparisons as plain JSON, for `record_searches`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

import masksearch as ms
from masksearch import masks
from masksearch.contracts import Record
from masksearch.gates.result import DamResult


# -- the one place that knows how commits differ ------------------------------------------------
def who(record: Any) -> dict[str, Any]:
    """What a record's mask is called, what part it plays, and its parameters without both."""
    params = dict(record.params)
    if hasattr(record, "role"):
        name, role = record.name, record.role.replace("control", "compared")
        params.pop("mask", None)
    else:
        name = params.pop("mask", "")
        _, colon, baseline = record.origin.partition(":")
        role = "baseline" if colon else "compared" if record.origin == "compare" else "trial"
        name = name or baseline
    if role == "trial":
        return {"role": role, "origin": record.origin, "name": name, "params": params}
    return {"role": role, "name": name, "params": params}


# -- plain data ---------------------------------------------------------------------------------
def plain(value: Any) -> Any:
    """Numbers to the last bit, tensors as hashes, masks as JSON."""
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, masks.Mask):
        return {"expression": str(value)[:200], "digest": value.digest}
    if isinstance(value, torch.Tensor):
        made = value.detach().cpu().contiguous()
        text = f"{made.dtype} {list(made.shape)}".encode()
        return "tensor " + hashlib.sha256(text + made.numpy().tobytes()).hexdigest()[:24]
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(each) for each in value]
    if hasattr(value, "item"):  # a NumPy number
        return plain(value.item())
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return f"{type(value).__name__}"


def interval(value: Any) -> Any:
    """Value and bounds of an interval, whatever its class."""
    if value is None:
        return None
    first = value.value if hasattr(value, "value") else value.mean
    return plain([first, value.low, value.high])


def reports(several: Any) -> list[Any]:
    return [[report.step, plain(report.values)] for report in several]


def record_plain(record: Record) -> dict[str, Any]:
    job = type(record.job).__name__
    found = {"number": record.number, "status": record.status, "job": job, "seed": record.seed}
    found |= {"mask": plain(record.mask), "fingerprint": record.fingerprint, **who(record)}
    found |= {"protocol": record.protocol, "step": record.step, "values": plain(record.values)}
    found |= {"curve": reports(record.curve), "measures": plain(record.measures)}
    found |= {"memo": plain(record.strategy_state), "reason": record.reason}
    return found


def study_plain(study: ms.Study) -> dict[str, Any]:
    from masksearch.analysis.pareto import hypervolume

    records, objectives = study.records(), study.objectives
    front = study.frontier()
    points = [[record.value(o.name) for o in objectives] for record in front]
    gates = {
        record.number: plain(DamResult.load(study.run / record.artifacts["gates"]).probabilities)
        for record in records
        if "gates" in record.artifacts
    }
    return {
        "objectives": [[o.name, o.goal, plain(o.worst)] for o in objectives],
        "records": {str(record.number): record_plain(record) for record in records},
        "front": [record.number for record in front],
        "hypervolume": plain(hypervolume(points, objectives)) if points else None,
        "gates": gates,
    }


def comparison_plain(comparison: ms.Comparison) -> dict[str, Any]:
    entries = {
        name: {
            "kind": entry.kind,
            "fingerprint": entry.fingerprint,
            "score": interval(entry.score) if entry.scores else None,
            "scores": plain(entry.scores),
            "values": plain(entry.values),
            "at majority": sorted(entry.at_majority),
            "learned nothing": entry.learned_nothing,
        }
        for name, entry in comparison.entries.items()
    }
    findings = {
        f"{each.mask} against {each.against}": {
            "role": each.role,
            "outcome": each.outcome,
            "difference": interval(each.difference),
            "p": plain(each.difference.p_value),
            "adjusted": plain(each.adjusted),
            "gap": plain(each.gap),
            "rows": each.n_rows if hasattr(each, "n_rows") else each.difference.n_rows,
            "fair": each.fair,
        }
        for each in comparison.findings()
    }
    found = {"entries": entries, "findings": findings, "verdict": comparison.verdict().split("\n")}
    records = {str(r.number): record_plain(r) for r in comparison.records}
    found |= {"split": comparison.split, "records": records}
    fronts = comparison.fronts
    if fronts is None:
        return found
    arms = {
        name: {"masks": arm.masks, "front": arm.front, "volume": interval(arm.hypervolume)}
        for name, arm in fronts.arms.items()
    }
    return found | {
        "arms": plain(arms),
        "chances": plain(fronts.chances),
        "lost": interval(fronts.lost),
        "volumes": [
            [f.against, interval(f.difference), plain(f.difference.p_value), plain(f.adjusted)]
            for f in fronts.findings
        ],
    }
