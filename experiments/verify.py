"""Recomputes the claims of our pages from the result files that are kept.

    python -m experiments.verify

Each experiment, benchmarks/ and docs/ have a `claims.py` with a list `CLAIMS`. To add a claim,
write its sentence with `{}` for every number, and compute the numbers from results/ (`sentences`
and `rows` make many at once):

    Claim("README.md", "at its density: {} nats, 95 % interval [{}, {}]", [mean, low, high])
    Claim("README.md", "| star | ...", [density, loss])  # ...: every number to the end of the line

The sentence must stand exactly once on its page (or, with `after`, between that text and the next
heading), each number must be right to its last printed digit, an estimate must lie within the
interval behind it, `x [low, high]`, and the section must name the experiment. An experiment's
README.md goes on in results/notes.md: for claims they are one page.

In README.md and docs/does_search_pay.md (ADVICE) the row of a table has to *link* the experiment.
In their rows that link an experiment every word has to stand in a claim.

Of the pages that people act on (GUARDED) every number, a setting's too, and every such word has to
stand in a claim or in `NO_CLAIM`, wherever it is; so what a reader copies cannot be changed alone.

README.md, docs/ and experiments/README.md are the FRONT pages. There a comparative is a `{}` as
well. Its value is the difference whose sign it has, subject minus reference (for "better" and
"ahead": how much better):

    Claim("README.md", "TPE's mask loses {} nats {} than star", [abs(d), d])  # less: d < 0

Where a page prints no interval, the claim has it: a value may be `(value, low, high)`. The
estimate must lie in it, and a comparative needs its sign at both ends.

Names of arms, superlatives and verbs (ARMS, RANKS) stand in the template, or as a `{}` whose value
is the word. Listed is whatever no claim covers: these words in sentences with a claimed number (in
ADVICE, in all paragraphs that name an experiment), and on every page numbers with a decimal
point in paragraphs that name an experiment and in blocks of output. A block without a language, or
of `text`, is output; other blocks are code and not read. The list `NO_CLAIM` of a claims.py has
the words that need no claim: settings, figures of runs that were not kept, and output that a test
compares.
"""

from __future__ import annotations

import itertools
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
Value = float | str | tuple[float, float, float]  # the last: an estimate, the ends of its interval
NUMBER = r"(?<![\d.])[-+]?(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?<=\d)(?:e-?\d+)?"
HIGHER = "ahead above more better higher larger greater longer faster".split()
LOWER = "behind below less fewer worse lower smaller shorter slower".split()
SIDES = rf"(?<!or )(?<!and )(?<!\[)\b(?i:(?:no |nothing )?(?:{'|'.join(HIGHER + LOWER)}))\b"
RANKS = r"(?<!at )\b(?i:best|worst|nearest|most|least|los(?:es?|t)|gains?|beats?)\b"
ARMS = "first-order effects|first-order|effects|gates|whole heads|full layers|windows?|offsets?"
ARMS += "|star|random (?:search|keys|choice|masks)|greedy|restor\\w+|removal|addition|searched"
ARMS += "|dense|by hand|hand-designed|families|samplers|longformer|fixed|bigbird|log_sparse"
ARMS = rf"\b(?:DAM|TPE|(?i:{ARMS}))\b"
SPOKEN = rf"{NUMBER}|(?i:{'|'.join(WORDS)})\b|{SIDES}|{RANKS}|{ARMS}"
BETWEEN = r"[^\d\[\]|.;:()]{0,60}"  # " nats, " and " % interval", say
ESTIMATE = rf"({NUMBER})(?!\s%){BETWEEN}(?:[\d.]+\s%{BETWEEN})?\s\[({NUMBER}),\s({NUMBER})\]"
FRONT = ("README.md", "docs/", "experiments/README.md")
ADVICE = ("README.md", "docs/does_search_pay.md")  # what people act on
GUARDED = (*ADVICE, "docs/adapting.md", *(f"experiments/{n}_" for n in (21, 22, 23, 24, 25)))
PARTS = (
    r"\b(?i:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|half|halves|quarters?)\b"
)
ENGINES = r"\b(?:vLLM|SGLang|llama\.cpp|TensorRT-LLM|transformers)\b"
GUARD = rf"{NUMBER}|{PARTS}|{ENGINES}|{SIDES}|{RANKS}|{ARMS}"
FIGURES = (
    "experiments/0",
    "experiments/1",
    *(f"experiments/{n}_" for n in (21, 22, 23, 24, 25)),
    "benchmarks/",
    "docs/engines.md",
)  # all is reported
SIMULATED = ("docs/statistics.md",)  # tests/analysis/test_null_rates.py compares them
OUTPUT = ("", "text")  # what blocks of output are called; other blocks are code
STOP = r"[.;:?!](?=\s)|\n\s*\n|\n(?=\s*[-|] )"  # ends of a sentence
NAMED = r"experiments/|(?<!books/)\b\d\d_[a-z]|benchmarks/"  # a paragraph that reports results
BLOCKS = r"^ *```([^\n]*)\n.*?^ *```"
LABELS = re.compile(
    r"\[\d\d(?= {5})|^#.*|^!\[.*|^\d+\.(?= )", re.M
)  # links, pictures, headings, items
UNREAD = r"`[^`\n]*`|\]\([^)\s]*\)|<!--.*?-->"  # code, targets of links


@dataclass(frozen=True)
class Claim:
    """A sentence or row of a page, with `{}` for its numbers, and what they should be."""

    page: str
    sentence: str
    values: Sequence[Value]
    after: str = ""  # the sentence is looked for between this text and the next heading
    source: str = ""  # the folder that the section has to name; filled in by `read`

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.sentence.split())}"


def rows(page: str, cells: Mapping[str, Sequence[Value]], after: str = "") -> list[Claim]:
    """One claim for each row of a table: its first cell, and the numbers in the others."""
    return [Claim(page, f"| {cell} |...", values, after) for cell, values in cells.items()]


def sentences(page: str, said: Mapping[str, Sequence[Value]]) -> list[Claim]:
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
    """A page as claims see it: without marks of bold type, an experiment's with its notes."""
    path = ROOT / page
    files = [path, path.parent / "results" / "notes.md"]
    texts = [each.read_text(encoding="utf-8") for each in files if each.is_file()]
    return "\n\n".join(texts).replace("**", "")


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


def agrees(printed: str, value: Value) -> bool:
    """Whether a printed number is the value, to its last digit; a comparative has its sign, of an
    estimate with an interval at both ends ("no better": at one)."""
    if isinstance(value, tuple):
        value, low, high = value
        if re.fullmatch(SIDES, printed):
            shown = any if " " in printed.strip() else all
            return shown(agrees(printed, end) for end in (low, high))
        return low <= value <= high and agrees(printed, value)
    if isinstance(value, str):
        return " ".join(printed.lower().split()) == value.lower()
    if re.fullmatch(SIDES, printed):
        denied, _, word = printed.lower().rpartition(" ")
        return (value > 0 if word in HIGHER else value < 0) != bool(denied)
    if re.fullmatch(f"{RANKS}|{ARMS}", printed):
        return False
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
        f"{claim}: {number} on the page, computed "
        + (str(value) if isinstance(value, str | tuple) else f"{value:.6g}")
        for number, value in zip(printed, claim.values, strict=True)
        if not agrees(number, value)
    ]
    if claim.page.startswith(FRONT):
        wrong += [
            f"{claim}: write {{}} for '{word[0]}', and give the difference whose sign it has"
            for word in re.finditer(SIDES, re.sub(UNREAD, "", claim.sentence))
        ]
    if claim.source not in claim.page:
        heads = [head.start() for head in re.finditer(r"^#+ ", text, re.M)]
        first = max((at for at in heads if at <= found[0].start()), default=0)
        last = min((at for at in heads if at > found[0].start()), default=len(text))
        if claim.source not in text[first:last]:
            wrong.append(f"{claim}: its section does not name {claim.source}")
        row = text[text.rfind("\n", 0, found[0].start()) + 1 :].partition("\n")[0]
        link = rf"\]\([^)\s]*\b{re.escape(claim.source)}/"
        if claim.page in ADVICE and row.startswith("|") and not re.search(link, row):
            wrong.append(f"{claim}: its row does not link {claim.source}")
    return wrong


def misplaced(page: str, text: str) -> list[str]:
    """Printed estimates that lie outside the interval printed behind them."""
    found = re.finditer(ESTIMATE, prose(text) + outputs(text))
    each = [(place[0], [float(end.replace(",", "")) for end in place.groups()]) for place in found]
    return [
        f"{page}: the estimate lies outside its interval in '{' '.join(said.split())}'"
        for said, (value, low, high) in each
        if not low <= value <= high
    ]


def blank(text: str) -> str:
    """As much white space as a text takes."""
    return re.sub(r"[^\n]", " ", text)


def outputs(text: str) -> str:
    """The blocks of a page that show what a program prints, all else blank."""
    shown = [code.span() for code in re.finditer(BLOCKS, text, re.S | re.M) if code[1] in OUTPUT]
    ends = [0, *(at for span in shown for at in span), len(text)]
    parts = [text[low:high] for low, high in itertools.pairwise(ends)]
    return "".join(part if i % 2 else blank(part) for i, part in enumerate(parts))


def prose(text: str) -> str:
    """A page without blocks, other code and targets of links, in place."""
    text = re.sub(BLOCKS, lambda code: blank(code[0]), text, flags=re.S | re.M)
    return re.sub(UNREAD, lambda code: blank(code[0]), text, flags=re.S)


def results(page: str, text: str) -> str:
    """The paragraphs of a page that report results, in place.

    All of a page of FIGURES; elsewhere paragraphs that name an experiment or benchmark, and the
    tables and lists right below them.
    """
    parts, named, at, words = [], page.startswith(FIGURES), 0, prose(text)
    everything = named
    for block in re.split(r"(\n\s*\n)", text):
        if not everything and block.strip():
            tables = ("- ",) if page in SIMULATED else ("|", "- ")
            below = named and block.lstrip().startswith(tables)
            named = below or bool(re.search(NAMED, block))
        part = words[at : at + len(block)]
        parts.append(part if named else blank(part))
        at += len(block)
    return "".join(parts)


def guarded(page: str) -> bool:
    """Whether every number and every such word of a page has to stand in a claim."""
    return page.startswith(GUARDED)


def guarded_words(text: str) -> list[re.Match[str]]:
    """The numbers, comparatives, arms and engines of a page's prose."""
    read = LABELS.sub(lambda label: blank(label[0]), prose(text))
    return list(re.finditer(GUARD, read))


def unclaimed(page: str, text: str, claims: Iterable[Claim], exempt: Iterable[Claim]) -> list[str]:
    """Reported numbers with a decimal point, and words of FRONT pages, that nothing covers."""
    held = [place for claim in claims if claim.page == page for place in places(claim, text)]
    free = [place for claim in exempt if claim.page == page for place in places(claim, text)]
    covered = [place.span() for place in (*held, *free)]
    told = results(page, text)
    bare = [
        number
        for part in (told, outputs(text))
        for number in re.finditer(NUMBER, part)
        if "." in number[0]
    ]
    if page.startswith(FRONT):
        told = told if page in ADVICE else prose(text)
        claimed = [at for place in held for at, _ in numbers(place)]
        ends = [0, *(end.end() for end in re.finditer(STOP, text)), len(text)]
        for low, high in itertools.pairwise(ends):
            if page in ADVICE or any(low <= at < high for at in claimed):
                bare += re.compile(f"{SIDES}|{RANKS}|{ARMS}").finditer(told, low, high)
    if guarded(page):
        bare += guarded_words(text)
    if page in ADVICE:
        for row in re.finditer(r"^\|.*\]\(\S*experiments/\d.*", text, re.M):
            bare += re.compile(r"\w+").finditer(text, *row.span())
    lines = text.splitlines()
    return [
        f"{page}: no claim holds '{part[0]}' in '{lines[text.count(chr(10), 0, part.start())]}'"
        for part in sorted({part.span(): part for part in bare}.values(), key=re.Match.start)
        if not any(low <= part.start() and part.end() <= high for low, high in covered)
    ]


def main() -> int:
    (claims, exempt), wrong = read(), []
    for page in pages():
        text = text_of(page)
        wrong += [each for claim in claims if claim.page == page for each in problems(claim, text)]
        wrong += misplaced(page, text)
        wrong += unclaimed(page, text, claims, exempt)
    print(*wrong[:40], sep="\n", end="\n" * bool(wrong))
    print(f"{len(claims)} claims recomputed, {len(wrong)} wrong or missing")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
