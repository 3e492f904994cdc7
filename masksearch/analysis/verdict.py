"""The verdict on compared masks, in sentences."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from masksearch.analysis.fronts import ComparedFronts, describe_fronts
from masksearch.analysis.runs import (
    NOTHING,
    ComparedRuns,
    Finding,
    MaskRuns,
    Outcome,
    Pair,
    describe_reuse,
)
from masksearch.analysis.stats import (
    CLAIM_SEEDS,
    MOST_SEEDS,
    POWER,
    format_estimate,
    format_p,
    largest_sd,
    rows_needed,
    seeds_needed,
)

WORDS = {
    "better": "better than",
    "worse": "worse than",
    "not distinguishable": "not distinguishable from",
    "too few seeds": "too few seeds to tell from",
    "loses at most": "loses at most {margin:g} to",
    "loses more than": "loses more than {margin:g} to",
    "gains more than": "gains more than {margin:g} over",
    "undecided": "undecided (margin {margin:g}) against",
}
FAMILY = "one of all hand-designed families"  # role where every one of them is an opponent
INDENT = "  "  # of the lines that give the figures behind an outcome


def verdict_text(
    comparison: ComparedRuns,
    fronts: ComparedFronts | None,
    findings: list[Finding],
    reference: str,
    verbose: bool = True,
) -> str:
    """The outcome of each mask with its figures indented below, then the warnings; unless
    `verbose`, one line has the differences to all opponents that nobody has named."""
    if comparison.mixture:
        return f"Nothing is decided: {comparison.mixture}."
    entries = comparison.entries
    tested = comparison.subjects
    lines = describe_fronts(fronts, comparison.objectives)
    if not tested:
        name = next((n for n, e in entries.items() if e.kind == "hand-designed"), "NAME")
        lines.append(
            "No searched mask and no candidate is in this comparison, so there is nothing to "
            f"decide. {_how_to_say(name)}"
        )
    for entry in tested:
        of_mask = [finding for finding in findings if finding.mask == entry.name]
        lines.append(_outcome_line(comparison, entry, of_mask + mirrored(entry, findings)))
        details = _detail_lines(comparison, entry, of_mask, findings, verbose)
        lines.extend(INDENT + line for line in details)
    lines += _rule_lines(comparison, findings, reference)
    if tested and all(entry.kind == "candidate" for entry in tested):
        lines.append(
            "No mask is said to come from a search, so these are outcomes of candidates. "
            f"{_how_to_say(tested[0].name)}"
        )
    if tested and reference not in entries:
        lines.append(f"{reference} was not run, so nothing is said about it.")
    elif tested and not entries[reference].scores:
        lines.append(f"{reference} has no finished run, so nothing is said about it.")
    return "\n".join([*lines, *_warning_lines(comparison)])


def plan_of_tests(pairs: Sequence[Pair], seeds: int, comparison: ComparedRuns) -> str:
    """How many tests a comparison makes, and which difference so many seeds can show.

    Args:
        pairs: Of its masks.
        seeds: That judge each.
        comparison: As declared; its runs are not read.
    """
    if not pairs:
        return "No mask is tested against another"
    margin = comparison.margin
    bounded = 0 if margin is None else sum(role == "reference" for _, role, _ in pairs)
    text = count(len(pairs), "test")
    if comparison.seedless:
        return f"{text}, decided by rows"
    if seeds < CLAIM_SEEDS:
        return f"{text}, none of them decisive: that takes {CLAIM_SEEDS} seeds"
    if margin is None:
        return text
    spread = largest_sd(margin, seeds, max(len(pairs) - bounded, bounded))
    return (
        f"{text}: a difference of {margin:g} shows (power {POWER:g}) if it varies over seeds by "
        f"an sd of at most {spread:.2g}"
    )


def _rule_lines(comparison: ComparedRuns, findings: list[Finding], reference: str) -> list[str]:
    """By which rules the outcomes were found."""
    over = "rows: every seed gives the same scores" if comparison.seedless else "common seeds"
    score, lines = comparison.title, []
    bounded = sum(finding.margin is not None for finding in findings)
    if tested := len(findings) - bounded:
        lines.append(
            f"Differences in {score} to each of these, over {over} (paired t-test); p and "
            f"intervals hold for {count(tested, 'comparison')} together (Holm, 5%). 'Not "
            "distinguishable' is not 'equal'."
        )
    if tested and not bounded and comparison.margin and reference in comparison.entries:
        if comparison.reference_tells_nothing(reference):
            lines.append(
                f"{reference} scores {comparison.entries[reference].shown}: its interval is wider "
                f"than any two masks differ, so none is tested for a loss of {comparison.margin:g}"
                " to it."
            )
    if bounded:
        lines.append(
            f"Against {reference} the margin is {comparison.margin:g} of {score}: one-sided tests "
            f"over {over}, p of each kind of outcome for {count(bounded, 'mask')} together (Holm, "
            "2.5%), and so the intervals (Bonferroni, 95%)."
        )
    return lines


def _how_to_say(name: str) -> str:
    """How a caller says that a mask comes from a search."""
    return (
        f'Say so of one that does: kinds={{{json.dumps(name)}: "searched"}}, or compare the '
        "record that the search made of it (on the command line RUN, or RUN#7)."
    )


def _outcome_line(comparison: ComparedRuns, entry: MaskRuns, findings: list[Finding]) -> str:
    """One line: better than, worse than, not distinguishable from."""
    name = entry.name + (" (candidate)" if entry.kind == "candidate" else "")
    if not entry.scores:
        reasons = (record.reason for record in comparison.records if record.name == entry.name)
        failed = ": ".join([f"{entry.failed} failed", *[*filter(None, reasons)][:1]])
        return f"{name}: no finished run ({failed}), so nothing is known."
    verdict = outcome_words(comparison, findings) or "nothing to compare it with"
    sparsity = "" if math.isnan(entry.sparsity) else f"{_describe_sparsity(entry)}, "
    lost = f", {len(entry.diverged)} of them diverged" if entry.diverged else ""
    return f"{name}: {verdict} ({sparsity}{comparison.title} {entry.shown}{lost})."


def _describe_sparsity(entry: MaskRuns) -> str:
    """A mask's sparsity, with that of the whole table where padding or the future differ."""
    text = f"{100 * entry.sparsity:.1f}% sparse"
    if abs(entry.table_sparsity - entry.sparsity) < 0.0005 or math.isnan(entry.table_sparsity):
        return text
    return f"{text}, {100 * entry.table_sparsity:.1f}% of the table"


def mirrored(entry: MaskRuns, findings: list[Finding]) -> list[Finding]:
    """The comparisons of other masks with this one, as it sees them."""
    turned: dict[str, Outcome] = {"better": "worse", "worse": "better"}
    return [
        replace(each, mask=each.against, against=each.mask, gap=-each.gap,
                outcome=turned.get(each.outcome, each.outcome))
        for each in findings
        if each.against == entry.name and each.margin is None
    ]  # fmt: skip


def outcome_words(comparison: ComparedRuns, findings: list[Finding]) -> str:
    """Such as 'better than a 0.62, not distinguishable from "b, late" 0.83': outcomes, and the
    opponents with their scores; empty for no findings."""
    outcomes: dict[str, list[str]] = {}
    families = [finding for finding in findings if finding.role == FAMILY]
    alike = len({(f.outcome, f.same) for f in families}) == 1 and all(f.fair for f in families)
    for finding in findings:
        word = WORDS[finding.outcome].format(margin=finding.margin)
        word = "the same mask as" if finding.same else word
        names = outcomes.setdefault(word, [])
        if not (alike and finding.role == FAMILY):
            score = format_estimate(comparison.entries[finding.against].score.value)
            name = f'"{finding.against}"' if " " in finding.against else finding.against
            names.append(f"{name} {score}")
        elif finding is families[0]:
            names.append(f"all {len(families)} hand-designed families")
    return ", ".join(f"{word} {_join_names(names)}" for word, names in outcomes.items())


def _join_names(names: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def count(number: int, thing: str) -> str:
    """'1 comparison', '2 comparisons'."""
    return f"{number} {thing}" + ("s" if number != 1 else "")


def _detail_lines(
    comparison: ComparedRuns,
    entry: MaskRuns,
    of_mask: list[Finding],
    findings: list[Finding],
    verbose: bool,
) -> list[str]:
    """The figures behind one mask's outcome; `of_mask` of all the findings are the mask's."""
    if not entry.scores:
        return []
    together = Counter(finding.margin for finding in findings)  # corrected together
    beside = [e for e in of_mask if e.role != "named" and e.fair and e.difference.n and not e.same]
    whole = of_mask if verbose else [each for each in of_mask if each not in beside]
    lines = [_describe_finding(comparison, each, together[each.margin]) for each in whole]
    if beside and not verbose:
        shown = [f"{each.against} {each.difference.text(signed=True)}" for each in beside]
        lines.append(f"hand-designed and control (--verbose says more): {', '.join(shown)}")
    if text := beyond_budgets(comparison, entry):
        lines.append(text)
    hand = [each for each in comparison.entries.values() if each.hand and each.scores]
    if not hand and all(finding.role != "named" for finding in findings):
        lines.append("no hand-designed mask has a finished run to compare it with")
    if entry.tested and not entry.family and (best := comparison.best_hand(entry)):
        gap, score = sparser(best.sparsity - entry.sparsity), format_estimate(best.score.value)
        if comparison.sign * (best.score.value - entry.score.value) > 0:
            lines.append(
                f"{best.name} is hand-designed, {gap} and has the better mean, {score}: the "
                f"{'search' if entry.kind == 'searched' else 'candidate'} has not beaten the "
                "hand-designed masks"
            )
        elif not any({entry.name, best.name} == {each.mask, each.against} for each in findings):
            lines.append(
                f"the best hand-designed mask at that sparsity is {best.name} {score} ({gap})"
            )
    return lines


def beyond_budgets(comparison: ComparedRuns, entry: MaskRuns) -> str:
    """That a mask which stands for no budget costs more than some, in words; else empty."""
    smaller = {*comparison.budgets.values()} - entry.budgets
    judged_within = {*comparison.budgets, *comparison.promised}
    if not smaller or not entry.tested or entry.name in judged_within:
        return ""
    pairs = math.isclose(entry.cost, 1 - entry.sparsity)
    what = "the pairs" if pairs else f"dense {comparison.objectives[1].name}"
    limits = _join_names([f"{each:g}" for each in sorted(smaller)])
    return f"{100 * entry.cost:.1f} % of {what}, beyond {limits}: it is no opponent there"


def sparser(gap: float) -> str:
    """How a mask's sparsity relates to another's; `gap` in shares of the table."""
    if math.isnan(gap):
        return "of unknown sparsity"
    if abs(gap) < 0.0005:
        return "equally sparse"
    return f"{abs(100 * gap):.1f} points {'sparser' if gap > 0 else 'denser'}"


def _describe_finding(comparison: ComparedRuns, finding: Finding, family: int) -> str:
    """One comparison in a line: with which mask, the difference, the outcome.

    Args:
        comparison: The runs.
        finding: What they say of two masks.
        family: Comparisons that are corrected together.
    """
    difference, other = finding.difference, comparison.entries[finding.against]
    name = f"{finding.against} ({finding.role}, {sparser(-finding.gap)})"
    if not math.isnan(other.sparsity):
        name = f"{name[:-1]}: {_describe_sparsity(other)})"
    if finding.same:
        return f"{name}: the same mask, so no difference can be claimed"
    if difference.n == 0:
        return f"{name}: no seed in common"
    shown = difference.text(signed=True)
    seeds = "any seed" if difference.seedless else count(difference.n, "common seed")
    if finding.outcome == "too few seeds":
        verb = "decides" if difference.n == 1 else "decide"
        more = needed(comparison, finding, family)
        return f"{name}: {shown} on {seeds}, which {verb} nothing; {more}"
    if math.isnan(difference.p_value):
        if difference.seedless and other.rows and comparison.entries[finding.mask].rows:
            return f"{name}: {shown} on every row, so no difference can be claimed"
        rows = "; its rows were not kept" if difference.seedless else ""
        return f"{name}: {shown} on each of {seeds}, which says nothing of others{rows}"
    rows = f" and {difference.n_rows:,} rows" if difference.n_rows else ""
    outcome = finding.words
    if finding.outcome == "undecided":
        outcome = f"undecided: {needed(comparison, finding, family)}"
    fair = finding.fair or comparison.entries[finding.mask].budgets & other.budgets
    return (
        f"{name}: {shown} ({100 * difference.level:.4g}% interval, {seeds}{rows}), "
        f"p {format_p(finding.adjusted)}, {outcome}"
    ) + ("" if fair else "; it keeps more cells than that mask, so this is no fair win")


def needed(comparison: ComparedRuns, finding: Finding, family: int) -> str:
    """How many seeds or rows would decide, were the difference that was found the true one."""
    gap = finding.difference
    if not gap.seedless and gap.n < 2:
        return f"run {CLAIM_SEEDS} seeds or more"
    if any(comparison.entries[name].learned_nothing for name in (finding.mask, finding.against)):
        return NOTHING
    edge = 0.0 if finding.margin is None else finding.margin
    beyond = abs(comparison.sign * gap.value + edge)
    about = {"sd": 0.0 if gap.seedless else gap.sd, "row_error": gap.row_error}
    seeds = None if gap.seedless else seeds_needed(beyond, family, **about)
    if seeds is not None:
        return f"if it is true, {seeds} seeds would show it (power {POWER:g})"
    if not gap.n_rows:
        return f"too small for {MOST_SEEDS:,} seeds"
    rows = rows_needed(beyond, max(gap.n, CLAIM_SEEDS), family, rows=gap.n_rows, **about)
    shown = f"if it is true, {rows:,} rows would show it (power {POWER:g})" if rows else ""
    if gap.seedless:
        return shown or f"too small for {1000 * gap.n_rows:,} rows"
    more = f"more seeds leave the error of these {gap.n_rows:,} rows ({gap.row_error:.2g})"
    return f"{more}; {shown}" if shown else f"{more}, more rows that of the seeds: it takes both"


def _warning_lines(comparison: ComparedRuns) -> list[str]:
    """Warnings for a reader, before the scores are believed."""
    entries = list(comparison.entries.values())
    searched = [entry for entry in entries if entry.kind == "searched" and entry.scores]
    lines = _row_lines(comparison, searched)
    if comparison.read_out:
        lines.append(f"Judged with heads of read_out={comparison.read_out!r}.")
    nothing = [entry.name for entry in entries if entry.learned_nothing]
    judged = [entry for entry in entries if entry.scores]
    whole = len(nothing) == len(judged)  # then the tasks need no lines of their own
    if nothing:
        who = "every mask" if whole else ", ".join(nothing)
        lines.append(
            f"Learned nothing, so never better than another mask: {who} (no better than a "
            "constant answer on any task)."
        )
    tasks = {task for entry in entries for task in entry.at_majority}
    for task in () if whole else sorted(tasks):
        those = [entry.name for entry in entries if task in entry.at_majority]
        others = [e.name for e in entries if task in e.values and e.name not in those]
        who = ", ".join(those)
        if len(others) < len(those):
            who = f"any mask but {', '.join(others)}" if others else "any mask"
        meaning = f" ({comparison.meanings[task]})" if task in comparison.meanings else ""
        lines.append(
            f"{task}{meaning} says nothing about {who}: no better than a constant answer."
        )
    single = [entry.name for entry in entries if len(entry.scores) == 1]
    if single and not comparison.seedless:
        lines.append(f"One seed only, hence no interval: {', '.join(single)}.")
    worst = format_estimate(comparison.worst)
    diverged = {entry.name: len(entry.diverged) for entry in entries}
    lines += counted(f"Diverged runs, each counted as {worst}", diverged)
    finished = {entry.name: len(entry.scores) - len(entry.diverged) for entry in entries}
    if any(entry.rows for entry in entries):
        lines += counted(
            "Scores of single rows are missing or damaged, so that fewer seeds (below two: none) "
            "tell how rows vary",
            {entry.name: finished[entry.name] - len(entry.rows) for entry in entries},
        )
    elif any(finished.values()):
        lines.append(
            "The scores of single rows were not kept, so that intervals cover other seeds only."
        )
    failed = {entry.name: entry.failed for entry in entries}
    lines += counted("Failed runs, left out of the means", failed)
    lines += counted("Runs not finished", {entry.name: entry.unfinished for entry in entries})
    unknown = [entry.name for entry in entries if math.isnan(entry.sparsity)]
    if unknown:
        lines.append(f"Sparsity unknown: {', '.join(unknown)}.")
    return lines


def counted(text: str, numbers: dict[str, int]) -> list[str]:
    """A line with the masks that a fact is true of, and how often; none where it is of none."""
    those = [f"{name} ({number})" for name, number in numbers.items() if number]
    return [f"{text}: {', '.join(those)}."] if those else []


ROWS_THAT_JUDGE = {
    "holdout": "Judged by rows that no search has seen (split='holdout').",
    "test": "Judged by test rows, which no search has seen.",
    "validation": "Judged by the rows that searches use (split='validation').",
    "all": "Judged by all rows, those that searches use among them (split='all').",
    "": "The evaluator splits no rows, so those that judge may have found the searched masks too.",
}


def _row_lines(comparison: ComparedRuns, searched: list[MaskRuns]) -> list[str]:
    """On which rows and seeds searched masks are judged, and which of them had found them."""
    if not searched:
        return []
    lines = [ROWS_THAT_JUDGE[comparison.split]]
    for entry in searched:
        if entry.name in comparison.found_with:
            origin = {entry.name: comparison.found_with[entry.name]}
            lines += [
                f"{line}." for line in describe_reuse(origin, entry.scores, comparison.split)
            ]
    unknown = [entry.name for entry in searched if entry.name not in comparison.found_with]
    if unknown:
        lines.append(
            f"Which seeds and rows found {_join_names(unknown)} is not known here: compare the "
            "record of the search (study.best(), 'RUN#7'), not its mask alone."
        )
    return lines
