"""What a page says of one protocol, before it is told: records, and how they were made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from masksearch.analysis.compare import Comparison
from masksearch.analysis.proxy_card import ProxyCard
from masksearch.analysis.search_curves import Searches
from masksearch.contracts import Objective, Record, Shape
from masksearch.report.dam import DamRuns
from masksearch.report.reproduce import Recipe


@dataclass(frozen=True)
class Section:
    """What a page says of one protocol: its searches, its comparisons, and their figures.

    Args:
        studies: Strategy name -> its records, baselines included.
        objectives: The first one is the score.
        comparisons: Name -> masks judged over several seeds; their verdicts head the section.
        title: What sets it apart from the page's other sections; empty where it is the only one.
        facts: What a reader must know (protocol, data, steps, machine).
        shape: What the masks were lowered to; without it no mask is drawn.
        dam: Health cards of the DAM runs among the records, and what they say together.
        proxy: How far to trust the short runs among the records.
        recipes: How each study was made.
        searches: Strategy -> search seed -> records, where strategies ran with several seeds.
        runs: Name of a search -> its run folder, where it has one.
        evaluate: The command that judges `MASK` by this protocol; empty where Python code did.
        truth: Sparsity in [0, 1] and score of the points of the true front, where it is known.
    """

    studies: Mapping[str, list[Record]]
    objectives: Sequence[Objective]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    title: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None
    dam: DamRuns = field(default_factory=DamRuns)
    proxy: ProxyCard | None = None
    recipes: Sequence[Recipe] = ()
    searches: Searches = field(default_factory=dict)
    runs: Mapping[str, Path] = field(default_factory=dict)
    evaluate: str = ""
    truth: Sequence[tuple[float, float]] = ()

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
