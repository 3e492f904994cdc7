"""Plans: which units of one model keep full attention, in a file that says how that was found.

plan = Plan.load("runs/allocate/plan.json")
ms.attach(model, plan.mask)

{"kind": "masksearch-plan", "format": 1, "model": {"name": "smollm2", "digest": "9f..", ..},
 "unit": "layer", "levels": ["columns(4) | window(127)", "full()"], "units": {"l0": 0, ..},
 "mask": {..}, "expression": "per_layer([..])", "found": {"budget": .25, "nll": {..}, ..}}
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masksearch.errors import DataError, MaskFormatError
from masksearch.files import object_in, write_in_one_move
from masksearch.masks.core import Mask
from masksearch.tasks.splits import FEW
from masksearch_decoders.tasks.long_context import GROUPS

KIND, FORMAT = "masksearch-plan", 1


@dataclass(frozen=True)
class Plan:
    """The result of `allocate`: which layers or heads of one model keep full attention.

    Args:
        model: Of the model: `name`, `architecture`, and `digest`, a hash over the bytes of its
            configuration and weights (`masksearch_decoders.decoders.open_decoder(folder).digest`).
        unit: `"layer"`, `"kv_head"` or `"head"`.
        levels: The masks of a unit, from the local one to the full one.
        units: The level of each unit.
        mask: The whole mask.
        found: How it was found, as plain data: budget, scores, losses, bytes of the cache.
    """

    model: Mapping[str, str]
    unit: str
    levels: tuple[Mask, ...]
    units: Mapping[str, int]
    mask: Mask
    found: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path | str) -> Path:
        """Writes the plan, in one move."""
        path = Path(path)
        plain = {
            "kind": KIND,
            "format": FORMAT,
            "model": dict(self.model),
            "unit": self.unit,
            "levels": [str(mask) for mask in self.levels],
            "units": dict(self.units),
            "expression": str(self.mask),
            "found": dict(self.found),
            "masks": {
                "whole": self.mask.to_dict(),
                "levels": [mask.to_dict() for mask in self.levels],
            },
        }
        with write_in_one_move(path) as beside:
            beside.write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n", "utf-8")
        return path

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            MaskFormatError: If it is no plan, or of a later version.
        """
        plain = object_in(Path(path))
        if plain.get("kind") != KIND:
            raise MaskFormatError(f"{path} is no plan; `masksearch allocate` writes one")
        if plain.get("format") != FORMAT:
            raise MaskFormatError(
                f"{path} is a plan of format {plain.get('format')!r}, and this version reads "
                f"format {FORMAT}; write it again, or update masksearch"
            )
        try:
            return cls(
                model={name: str(value) for name, value in plain["model"].items()},
                unit=str(plain["unit"]),
                levels=tuple(Mask.from_dict(each) for each in plain["masks"]["levels"]),
                units={str(name): int(level) for name, level in plain["units"].items()},
                mask=Mask.from_dict(plain["masks"]["whole"]),
                found=plain["found"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MaskFormatError(f"{path} is a damaged plan: {error!r:.120}") from error

    def check_model(self, digest: str, name: str) -> None:
        """Refuses another model than the plan's.

        Raises:
            DataError: If its configuration and weights have another hash.
        """
        if digest != self.model.get("digest"):
            raise DataError(
                f"the plan is for {self.model.get('name')} (hash {self.model.get('digest')}), and "
                f"{name} has the hash {digest}: units found for other weights mean nothing here; "
                "run masksearch allocate on this model, or attach the plan's mask as a mask: "
                f"{str(self.mask)!r:.60}"
            )

    def describe(self) -> str:
        """How the mask was found, as a section of a model card."""
        facts, name = self.found, self.model["name"]
        text = f"\n## How it was found\n\nJudged on {name} (hash {self.model['digest']}). "
        if budget := facts.get("budget"):
            text += f"Budget: {budget['limit']:g} of dense attention's {budget['cost']}.\n\n"
            text += f"```bash\nmasksearch allocate {name} TEXT --budget {budget['limit']:g} "
            text += f"--unit {self.unit} --length {facts['length']}\n```\n"
        if unseen := (facts.get("nll") or {}).get("unseen"):
            rows = describe_rows(unseen)
            text += f"\n| on {rows} that the search has not seen | nats a token |\n|---|---|\n"
            text += f"| dense attention | {unseen['dense']:.4f} |\n"
            text += f"| mask | {unseen['masked']:.4f} |\n"
            text += f"| mask minus dense, 95 % interval over rows | {describe_loss(unseen)} |\n"
        if rival := facts.get("rival"):
            text += f"\nWithin that budget `{rival['mask']}` in every layer: "
            text += f"{describe_rival(rival)}.\n"
        return text


def describe_loss(losses: Mapping[str, Any]) -> str:
    """A difference with its interval.

    >>> describe_loss({"difference": 0.25, "low": 0.125, "high": 0.375})
    '+0.2500 [+0.1250, +0.3750]'
    """
    over = f" [{losses['low']:+.4f}, {losses['high']:+.4f}]" if "low" in losses else ""
    return f"{losses['difference']:+.4f}{over}"


def describe_rows(losses: Mapping[str, Any]) -> str:
    """The rows that losses were judged on.

    >>> describe_rows({"documents": 40, "pieces_of": 1})
    '40 pieces of 1 document'
    """
    if "pieces_of" not in losses:
        return f"{losses['documents']} documents"
    whole = losses["pieces_of"]
    return f"{losses['documents']} pieces of {whole} document{'s' * (whole != 1)}"


def describe_rival(rival: Mapping[str, Any]) -> str:
    """Which of the two is better: a searched mask, or the widest window in all layers."""
    few = "pieces_of" in rival or rival.get("documents", FEW) < FEW
    only = f" on {describe_rows(rival)} alone, too few to speak of other texts" if few else ""
    if "searched" in rival:
        return (
            f"this is the plan, as it is better than what the search chose "
            f"({rival['searched']}){only or ' on unseen text'}: {describe_loss(rival)} nats a "
            "token, its loss minus that one's"
        )
    if rival.get("is_plan"):
        return "this is the plan, as nothing was better on the text of the search"
    shown = "is better" if few else "is shown to be better"
    better = "neither is shown to be better"
    if rival.get("low", 0.0) > 0:
        better = f"the plan {shown}{only}"
    elif rival.get("high", 0.0) < 0:
        better = f"it {shown} than the plan{only}"
    elif few:
        better = f"neither can be shown to be better on {describe_rows(rival)}"
    return f"{better}: {describe_loss(rival)} nats a token, its loss minus the plan's"


def _describe_tasks(by_form: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The losses of tasks' answers in nats a token, a line for each group of tasks.

    >>> _describe_tasks({"dense": {"nll/tracing": 1.0, "vt": 0.5}, "plan": {"nll/tracing": 1.5}})
    ["tracing, nats an answer's token: dense 1.000, plan 1.500 (+0.500)"]
    """
    lines = []
    for group in task_groups(by_form):
        dense, *others = ((form, values[f"nll/{group}"]) for form, values in by_form.items())
        losses = [f"{form} {loss:.3f} ({loss - dense[1]:+.3f})" for form, loss in others]
        lines.append(
            f"{group}, nats an answer's token: {', '.join([f'dense {dense[1]:.3f}', *losses])}"
        )
    return lines


def task_groups(by_form: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The groups of tasks that were judged."""
    return [name[4:] for name in by_form.get("dense", ()) if name[4:] in GROUPS]


def describe_added(added: Mapping[str, float]) -> str:
    """The rise of the loss under a mask, on the text and in each group of tasks, largest first.

    >>> describe_added({"text": 0.01, "retrieval": 0.25})
    'at most 0.250 nats in each: retrieval +0.250, text +0.010'
    """
    order = sorted(added, key=lambda name: -added[name])
    parts = ", ".join(f"{name} {added[name]:+.3f}" for name in order)
    return f"at most {max(added.values()):.3f} nats in each: {parts}"


def describe_units(plan: Plan) -> str:
    """Which units are full, and what the others keep.

    >>> from masksearch import masks
    >>> local, full = masks.window(7), masks.full()
    >>> levels, mask = (local, full), masks.per_layer([full, local])
    >>> describe_units(Plan({}, "layer", levels, {"l0": 1, "l1": 0}, mask))
    '1 of 2 units full (l0), the others window(7)'
    """
    names: dict[int, list[str]] = {}
    for name, level in plan.units.items():
        names.setdefault(level, []).append(name)
    others = sorted({*names} - {len(plan.levels) - 1}, key=lambda level: len(names[level]))
    if len(names) == 1:
        return f"{plan.levels[next(iter(names))]} in all {len(plan.units)} units"
    full = names.get(len(plan.levels) - 1, [])
    parts = [f"{len(full)} of {len(plan.units)} units full ({', '.join(full) or 'none'})"]
    for level in others[:-1]:
        parts.append(f"{len(names[level])} {plan.levels[level]} ({', '.join(names[level])})")
    return ", ".join([*parts, f"the others {plan.levels[others[-1]]}"])


def report_lines(plan: Plan, path: Path, model: str) -> list[str]:
    """The lines that the command prints on a plan."""
    facts = plan.found
    cost, limit = facts["budget"]["cost"], facts["budget"]["limit"]
    lines = [
        f"budget {limit:g}: {describe_units(plan)}",
        f"  {cost} {facts['cache'][cost]:.4f} of the dense cache at {facts['length']:,} tokens; "
        f"nll {facts['nll']['search']:.4f} on the text of the search",
    ]
    totals = ("kv_bytes", "kv_bytes_per_head")
    if rows := [f"{key[9:]} {at:.4f}" for key, at in facts["cache"].items() if key not in totals]:
        lines.append(f"  of its own dense cache each engine holds: {', '.join(rows)}")
        if more := [key[9:] for key, at in facts["cache"].items() if key not in totals and at > 1]:
            lines.append(
                f"  {', '.join(more)}: more than its dense cache, since blocks of tokens in "
                f"flight count and outweigh, at {facts['length']:,} tokens, what windows save: "
                "give the length that is served, --serving '{\"length\": 32768}'"
            )
    if facts["lost"]:
        lines.append(f"  on the search's own rows it adds {describe_added(facts['lost'])}")
    if unseen := facts["nll"]["unseen"]:
        lines.append(
            f"  on unseen text: dense {unseen['dense']:.4f}, masked {unseen['masked']:.4f}, "
            f"difference {describe_loss(unseen)} over {describe_rows(unseen)}"
        )
    if rival := facts["rival"]:
        lines.append(
            f"  the widest window of the budget, {rival['mask']} in every layer: "
            f"{describe_rival(rival)}"
        )
    lines += [f"  {line}" for line in _describe_tasks(facts.get("tasks", {}))]
    native = facts["native"]
    if "served" in facts:
        served = facts["served"]["losses"]
        lines.append(
            f"  as {facts['served']['engine']} serves it: {served['served']:.4f}, minus dense "
            f"{describe_loss(served)}; read SERVING.md in {facts['served']['folder']}"
        )
    elif "model_type" in native:
        lines.append(
            f"  {native['served_by']} can serve it alone ({native['model_type']}): --serve, --out"
        )
    else:
        lines.append(f"  not in the model's own configuration: {native['refused']}")
    words = f"masksearch attach {shlex.quote(model)} {shlex.quote(str(path))} --out FOLDER"
    return [*lines, f"  plan: {path}; put it on: {words}"]
