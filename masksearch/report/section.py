"""The section of one protocol, before it is written: records, and how they were made."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.search_curves import Searches
from masksearch.contracts import Objective, Record, Shape
from masksearch.report.dam import DamRuns

UNKNOWN = "not recorded"
DATA = ("corpus", "held_out", "tokenizer", "weights", "glue", "process")
CALLED = ("script", "folder", "space", "trials", "seconds", "seeds", "executor")
ABOUT = ("strategy", "seed", "constraints", "scheduler")  # facts of a search
SKIPPED = ("as_json", "progress")  # options that change nothing in a study


@dataclass(frozen=True)
class Recipe:
    """The recipe that repeats a study.

    Args:
        title: Which study it is.
        command: The command line that made it; empty where Python code did.
        rows: What else is known, by name.
        settings: The evaluator's settings by name.
    """

    title: str
    command: str
    rows: tuple[tuple[str, str], ...]
    settings: Mapping[str, Any]


def recipe_of(
    title: str,
    facts: Mapping[str, str],
    calls: Sequence[Mapping[str, Any]],
    command: Mapping[str, Any] | None,
) -> Recipe:
    """A study's recipe from what its folder holds.

    Args:
        title: Which study it is.
        facts: That it was created with.
        calls: With what each call that ran trials worked; empty before the first.
        command: What `command.json` holds; None where there is none.
    """
    first: Mapping[str, Any] = calls[0] if calls else {}
    rows: list[tuple[str, str]] = []
    if command is None:
        rows.append(("called in Python", f"masksearch.{facts.get('kind', 'search')}"))
        values = {**{name: facts.get(name, "") for name in ABOUT}, **first}
        names = [*CALLED, *ABOUT]
        rows += [(n, str(values[n])) for n in names if values.get(n) not in ("", "[]", None)]
    rows.append(("protocol", facts.get("protocol") or UNKNOWN))
    settings = {**(command or {}).get("options", {}), **first.get("evaluator", {})}
    paths = [f"{name} {settings[name]}" for name in DATA if settings.get(name)]
    hashes = [f"{name} {value}" for name, value in first.get("data", {}).items()]
    none = "the evaluator names none"
    rows.append(("data", ", ".join(paths) or "the evaluator's own"))
    rows.append(("data hashes", ", ".join(hashes) or (none if calls else UNKNOWN)))
    rows += _call_rows(first)
    for before, call in itertools.pairwise(calls):
        changed = [row for row in _call_rows(call) if row not in _call_rows(before)]
        if changed:
            text = "; ".join(f"{name}: {value}" for name, value in changed)
            rows.append((f"from trial {call['first_trial']} on", text))
    line = shell_line(command) if command is not None else ""
    return Recipe(title, line, tuple(rows), first.get("evaluator", {}))


def _call_rows(call: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, commit and machine of a call."""
    versions = ", ".join(f"{name} {version}" for name, version in call.get("versions", {}).items())
    return [
        ("versions", versions or UNKNOWN),
        ("git commit", call.get("commit", "no git working tree" if call else UNKNOWN)),
        ("machine", call.get("machine", UNKNOWN)),
    ]


def shell_line(command: Mapping[str, Any]) -> str:
    """The command line that a `command.json` stands for, every option given.

    >>> options = {"space": "my.py:space", "trials": 6, "baselines": True, "controls": "none"}
    >>> shell_line({"command": "search", "options": options | {"set": ["a=1", "b=2"]}})
    'masksearch search my.py:space --trials 6 --baselines --controls none --set a=1 --set b=2'
    """
    words = ["masksearch", command["command"]]
    options = dict(command["options"])
    words += [space] if (space := options.pop("space", None)) is not None else []
    words += options.pop("mask", None) or []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if name == "baselines" and value is False:
            words.append("--no-baselines")
        elif name in SKIPPED or value is None or value is False:
            continue
        elif value is True:
            words.append(option)
        else:
            for each in value if isinstance(value, list) else [value]:
                words += [option, str(each)]
    return shlex.join(words)


@dataclass(frozen=True)
class Section:
    """The section of one protocol: its searches, its comparisons, and their figures.

    Args:
        studies: Strategy name -> its records, baselines included.
        objectives: The first one is the score.
        comparisons: Name -> masks judged over several seeds; their verdicts head the section.
        title: What sets it apart from the page's other sections; empty where it is the only one.
        facts: What a reader must know (protocol, data, steps, machine).
        shape: What the masks were lowered to; without it no mask is drawn.
        dam: Health cards of the DAM runs among the records, and what they say together.
        proxy: How far to trust the short runs among the records: a ProxyCard of masksearch-bench.
        recipes: How each study was made.
        searches: Strategy -> search seed -> records, where strategies ran with several seeds.
        unfinished: Names of searches that have not ended; these are not among `searches`.
        truth: Sparsity in [0, 1] and score of the points of the true front, where it is known.
    """

    studies: Mapping[str, list[Record]]
    objectives: Sequence[Objective]
    comparisons: Mapping[str, ComparedMasks] = field(default_factory=dict)
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    dam: DamRuns = field(default_factory=DamRuns)
    proxy: Any = None
    recipes: Sequence[Recipe] = ()
    searches: Searches = field(default_factory=dict)
    truth: Sequence[tuple[float, float]] = ()
    unfinished: Sequence[str] = ()

    @property
    def searched(self) -> list[Record]:
        """The records of all searches."""
        return [record for study in self.studies.values() for record in study]

    @property
    def records(self) -> list[Record]:
        """The records of all searches and comparisons."""
        compared = [record for each in self.comparisons.values() for record in each.records]
        return self.searched + compared

    @property
    def key(self) -> str:
        """Begins the names of its figures, tables and headings."""
        words = re.sub(r"[^a-z0-9.]+", "-", self.title.lower()).strip("-")
        return f"{words}_" if words else ""
