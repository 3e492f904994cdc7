"""The words of a verdict: what a comparison's findings allow one to say, and no more."""

from __future__ import annotations

import math

from masksearch.results.comparison import MATCHED, Comparison, Entry, Finding

INDENT = "  "  # of the lines that give the figures behind an outcome


def verdict_text(comparison: Comparison, findings: list[Finding], reference: str) -> str:
    """The outcome of each searched mask with its figures indented below, then the warnings."""
    entries = comparison.entries
    searched = [entry for entry in entries.values() if entry.kind == "searched"]
    lines: list[str] = []
    if not searched:
        lines.append("No searched mask is in this comparison, so there is nothing to decide.")
    for entry in searched:
        own = [finding for finding in findings if finding.mask == entry.name]
        lines.append(outcome(comparison, entry, own))
        lines.extend(INDENT + line for line in details(comparison, entry, own))
    if findings:
        lines.append(
            f"Decided by paired differences over common seeds; {counted(len(findings))} "
            "corrected together (Holm, 5%), intervals at the corrected level. "
            "'Not distinguishable' is not 'equal'."
        )
    if searched and reference not in entries:
        lines.append(f"{reference} was not run, so nothing is said about it.")
    elif searched and not entries[reference].scores:
        lines.append(f"{reference} has no finished run, so nothing is said about it.")
    lines.extend(warnings(comparison))
    return "\n".join(lines)


def outcome(comparison: Comparison, entry: Entry, findings: list[Finding]) -> str:
    """One line: better than, worse than, not distinguishable from."""
    score = comparison.objectives[0]
    if not entry.scores:
        return f"{entry.name}: no finished run ({entry.failed} failed), so nothing is known."
    said: dict[str, list[str]] = {}
    for finding in findings:
        if finding.same:
            word = "the same mask as"
        else:
            word = finding.outcome + (
                " from" if finding.outcome == "not distinguishable" else " than"
            )
        said.setdefault(word, []).append(finding.against)
    clauses = [f"{word} {listed(names)}" for word, names in said.items()]
    verdict = ", ".join(clauses) or "nothing to compare it with"
    sparsity = "" if math.isnan(entry.sparsity) else f"{100 * entry.sparsity:.1f}% sparse, "
    return f"{entry.name}: {verdict} ({sparsity}{score.name} {entry.score})."


def listed(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted(number: int) -> str:
    """'1 comparison', '2 comparisons'."""
    return f"{number} comparison" + ("s" if number != 1 else "")


def details(comparison: Comparison, entry: Entry, findings: list[Finding]) -> list[str]:
    """The figures behind one mask's outcome."""
    if not entry.scores:
        return []
    lines = [against(finding) for finding in findings]
    hands = [e for e in comparison.entries.values() if e.kind == "hand-designed" and e.scores]
    if not hands:
        lines.append("No hand-designed mask has a finished run to compare it with.")
    sign = 1 if comparison.objectives[0].goal == "max" else -1
    above = [
        other
        for other in hands
        if other.sparsity >= entry.sparsity - MATCHED
        and sign * (other.score.mean - entry.score.mean) > 0
    ]
    if above:
        best = max(above, key=lambda other: sign * other.score.mean)
        lines.append(
            f"{best.name} is hand-designed, {sparser(best.sparsity - entry.sparsity)} and has the "
            f"better mean ({best.score.mean:.4g}), so the search has not beaten the "
            "hand-designed masks."
        )
    return lines


def sparser(gap: float) -> str:
    """How a mask's sparsity relates to another's; `gap` in shares of the table."""
    if math.isnan(gap):
        return "of unknown sparsity"
    if abs(gap) < 0.0005:
        return "equally sparse"
    return f"{abs(100 * gap):.1f} points {'sparser' if gap > 0 else 'denser'}"


def against(finding: Finding) -> str:
    """One comparison as a sentence."""
    difference = finding.difference
    name = f"{finding.against} ({finding.role}, {sparser(-finding.gap)})"
    if finding.same:
        return f"The same mask as {name}: equal bits, so no difference can be claimed."
    if difference.n_seeds == 0:
        return f"Not distinguishable from {name}: they have no seed in common."
    if difference.n_seeds == 1:
        return (
            f"Not distinguishable from {name}: difference {difference.mean:+.4g} on 1 common "
            "seed, which decides nothing; run more seeds."
        )
    figures = (
        f"difference {difference.mean:+.4g}, {100 * difference.level:.4g}% interval "
        f"[{difference.low:+.4g}, {difference.high:+.4g}], adjusted p = {finding.adjusted:.2g}, "
        f"{difference.n_seeds} seeds"
    )
    if finding.outcome == "better":
        fair = finding.gap >= -MATCHED or finding.role == "reference"
        return f"Better than {name}: {figures}." + (
            "" if fair else " It keeps more cells than that mask, so this is no fair win."
        )
    if finding.outcome == "worse":
        return f"Worse than {name}: {figures}."
    return f"Not distinguishable from {name}, so it is not shown to be better: {figures}."


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the scores."""
    lines: list[str] = []
    entries = list(comparison.entries.values())
    for task in sorted({task for entry in entries for task in entry.at_majority}):
        those = [entry.name for entry in entries if task in entry.at_majority]
        tested = [entry for entry in entries if task in entry.values]
        who = "every mask" if len(those) == len(tested) else ", ".join(those)
        lines.append(
            f"{task}: {who} scored no better than a constant prediction, so its score says "
            "nothing about the mask."
        )
    single = [entry.name for entry in entries if len(entry.scores) == 1]
    if single:
        lines.append(f"One seed only, hence no interval: {', '.join(single)}.")
    lost = [f"{entry.name} ({entry.failed})" for entry in entries if entry.failed]
    if lost:
        lines.append(f"Failed runs, left out of the means: {', '.join(lost)}.")
    pending = [f"{entry.name} ({entry.unfinished})" for entry in entries if entry.unfinished]
    if pending:
        lines.append(f"Runs not finished: {', '.join(pending)}.")
    unknown = [entry.name for entry in entries if math.isnan(entry.sparsity)]
    if unknown:
        lines.append(f"Sparsity unknown: {', '.join(unknown)}.")
    return lines
