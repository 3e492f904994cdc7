"""Recomputes the claims of our pages from the result files that are kept.

    python -m experiments.verify

Each experiment, benchmarks/ and docs/ have a `claims.py` with a list `CLAIMS`. To add a claim,
write its sentence with `{}` for every number, and compute the numbers from results/ (`sentences`
and `rows` make many at once):

    Claim("README.md", "at its density: {} nats, 95 % interval [{}, {}]", [mean, low, high])
    Claim("README.md", "| star | ...", [density, loss])  # ...: every number to the end of the line

The sentence must stand exactly once on its page (or, with `after`, between that text and the next
heading), each number must be right to its last printed digit, and the section must name the
experiment. Numbers with a decimal point beside the name of an experiment that no claim covers are
listed as well, unless the list `NO_CLAIM` of a claims.py has their words: settings, and figures of
runs that were not kept.
"""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/*.md", "experiments/README.md", "experiments/*/README.md"]
PAGES += ["benchmarks/README.md"]
SOURCES = ["experiments/*/claims.py", "benchmarks/claims.py", "docs/claims.py"]
WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()
NUMBER = r"(?<![\d.])[-+]?(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?<=\d)(?:e-?\d+)?"
SPOKEN = rf"{NUMBER}|(?i:{'|'.join(WORDS)})\b"
SIMULATED = ("docs/statistics_errors.md",)  # tests/analysis/test_null_rates.py compares them
UNREAD = r"```.*?```|`[^`\n]*`|\]\([^)\s]*\)|<!--.*?-->"  # code, targets of links


@dataclass(frozen=True)
class Claim:
    """A sentence or row of a page, with `{}` for its numbers, and what they should be."""

    page: str
    sentence: str
    values: Sequence[float]
    after: str = ""  # the sentence is looked for between this text and the next heading
    source: str = ""  # the folder that the section has to name; filled in by `read`

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.sentence.split())}"


def rows(page: str, cells: Mapping[str, Sequence[float]], after: str = "") -> list[Claim]:
    """One claim for each row of a table: its first cell, and the numbers in the others."""
    return [Claim(page, f"| {cell} |...", values, after) for cell, values in cells.items()]


def sentences(page: str, said: Mapping[str, Sequence[float]]) -> list[Claim]:
    """One claim for each sentence of a page."""
    return [Claim(page, sentence, values) for sentence, values in said.items()]


def interval(values: Iterable[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of values, and the ends of its interval by Student's t."""
    found = np.asarray(list(values), dtype=float)
    half = stats.t.ppf((1 + level) / 2, len(found) - 1) * stats.sem(found)
    return found.mean(), found.mean() - half, found.mean() + half


def read() -> tuple[list[Claim], list[Claim]]:
    """Every claim, with its values computed; and the sentences that are none."""
    found, exempt = [], []
    for path in [p for at in SOURCES for p in sorted(ROOT.glob(at))]:
        given = runpy.run_path(str(path))
        found += [replace(claim, source=path.parent.name) for claim in given["CLAIMS"]]
        exempt += [Claim(page, sentence, []) for page, sentence in given.get("NO_CLAIM", ())]
    return found, exempt


def text_of(page: str) -> str:
    """A page as claims see it: without marks of bold type."""
    return (ROOT / page).read_text(encoding="utf-8").replace("**", "")


def pages() -> list[str]:
    """Every page whose numbers are read."""
    return [str(path.relative_to(ROOT)) for at in PAGES for path in sorted(ROOT.glob(at))]


def places(claim: Claim, text: str) -> list[re.Match[str]]:
    """Where a page has the sentence of a claim."""
    start, end = 0, len(text)
    if claim.after:
        start = text.find(claim.after)
        start = len(text) if start < 0 else start + len(claim.after)
        head = re.search(r"^#+ ", text[start:], re.M)
        end = start + head.start() if head else end
    pattern = re.escape(" ".join(claim.sentence.split()))
    pattern = pattern.replace(r"\ ", r"\s+").replace(r"\{\}", f"({SPOKEN})")
    pattern = pattern.replace(r"\.\.\.", r"([^\n]*)")
    return list(re.compile(pattern).finditer(text, start, end))


def numbers(place: re.Match[str]) -> Iterator[tuple[int, str]]:
    """Position and text of each number that a claim has on its page."""
    for group in range(1, (place.re.groups or 0) + 1):
        at, found = place.start(group), place[group]
        if re.fullmatch(SPOKEN, found):
            yield at, found
        else:
            yield from ((at + each.start(), each[0]) for each in re.finditer(NUMBER, found))


def agrees(printed: str, value: float) -> bool:
    """Whether a printed number is the value, to its last digit."""
    if printed.lower() in WORDS:
        return value == WORDS.index(printed.lower())
    mantissa, _, power = printed.replace(",", "").partition("e")
    digits = len(mantissa.partition(".")[2]) - int(power or 0)
    return abs(float(f"{mantissa}e{power or 0}") - value) <= 0.5000001 * 10.0**-digits


def problems(claim: Claim, text: str) -> list[str]:
    """What is wrong with a claim on its page; empty where all is right."""
    found = places(claim, text)
    if len(found) != 1:
        return [f"{claim}: stands {len(found)} times on the page, not once"]
    printed = [number for _, number in numbers(found[0])]
    if len(printed) != len(claim.values):
        return [f"{claim}: {len(printed)} numbers on the page, {len(claim.values)} computed"]
    wrong = [
        f"{claim}: {number} on the page, computed {value:.6g}"
        for number, value in zip(printed, claim.values, strict=True)
        if not agrees(number, value)
    ]
    if claim.source not in claim.page:
        heads = [head.start() for head in re.finditer(r"^#+ ", text, re.M)]
        first = max((at for at in heads if at <= found[0].start()), default=0)
        last = min((at for at in heads if at > found[0].start()), default=len(text))
        if claim.source not in text[first:last]:
            wrong.append(f"{claim}: its section does not name {claim.source}")
    return wrong


def reported(page: str, text: str) -> str:
    """The parts of a page that report results, code and targets of links left out, in place.

    All of the page of an experiment or benchmark; elsewhere paragraphs that name one, and the
    tables and lists right below them.
    """
    parts, named = [], page.startswith(("experiments/0", "experiments/1", "benchmarks/"))
    everything = named
    for block in re.split(r"(\n\s*\n)", text):
        if not everything and block.strip():
            tables = ("- ",) if page in SIMULATED else ("|", "- ")
            below = named and block.lstrip().startswith(tables)
            named = below or bool(re.search(r"experiments/|\d\d_[a-z]|benchmarks/", block))
        parts.append(block if named else re.sub(r"[^\n]", " ", block))
    blank = "".join(parts)
    return re.sub(UNREAD, lambda code: re.sub(r"[^\n]", " ", code[0]), blank, flags=re.S)


def unclaimed(page: str, text: str, claims: Iterable[Claim], exempt: Iterable[Claim]) -> list[str]:
    """Reported numbers with a decimal point that neither a claim nor NO_CLAIM covers."""
    mine = [claim for claim in (*claims, *exempt) if claim.page == page]
    covered = [place.span() for claim in mine for place in places(claim, text)]
    bare = [
        number
        for number in re.finditer(NUMBER, reported(page, text))
        if "." in number[0] and not any(low <= number.start() < high for low, high in covered)
    ]
    lines = text.splitlines()
    return [
        f"{page}: no claim holds {number[0]} in '{lines[text.count(chr(10), 0, number.start())]}'"
        for number in bare
    ]


def main() -> int:
    (claims, exempt), wrong = read(), []
    for page in pages():
        text = text_of(page)
        wrong += [each for claim in claims if claim.page == page for each in problems(claim, text)]
        wrong += unclaimed(page, text, claims, exempt)
    print(*wrong[:40], sep="\n", end="\n" * bool(wrong))
    print(f"{len(claims)} claims recomputed, {len(wrong)} wrong or missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
