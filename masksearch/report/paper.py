r"""Tables for papers: CSV with every digit, and LaTeX (booktabs) with rounded figures.

A LaTeX table needs `\usepackage{booktabs}` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masksearch.analysis.compare import Against, ComparedMasks
from masksearch.analysis.pareto import pareto, sparsity_of
from masksearch.analysis.search_curves import Searches, compare_searches, curves_of, without_rte
from masksearch.contracts import Objective, Record, is_side_value
from masksearch.report.tables import (
    DASH,
    Cell,
    TextTable,
    comparison_table,
    findings_table,
    front_table,
    searches_table,
    words,
)

if TYPE_CHECKING:
    import pandas as pd

SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
}
PAIRS = "Sparsity: left out of the pairs that real tokens form (of the table: of all cells)."


def write_tables(
    folder: Path,
    key: str,
    studies: Mapping[str, Sequence[Record]],
    objectives: Sequence[Objective],
    comparisons: Mapping[str, ComparedMasks],
    searches: Searches,
) -> list[Path]:
    """Writes the tables of searches and comparisons as `.csv` and `.tex` files.

    Args:
        folder: Where they go; made if need be.
        key: Begins their names.
        studies: Strategy name -> its records.
        objectives: Those of the searches.
        comparisons: Name -> comparison; the files of the second one end in `_1`, and so on.
        searches: Strategy -> search seed -> records, where there are several seeds.

    Returns:
        The files.
    """
    texts: dict[str, str] = {}
    if pareto([record for study in studies.values() for record in study], objectives):
        texts["front.csv"] = front_frame(studies, objectives).to_csv(index=False)
        texts["front.tex"] = front_latex(studies, objectives)
    for place, comparison in enumerate(comparisons.values()):
        end = f"_{place}" if place else ""
        texts[f"compared{end}.csv"] = comparison.frame().to_csv(index=False)
        texts[f"compared_seeds{end}.csv"] = comparison.frame(per="seed").to_csv(index=False)
        texts[f"compared{end}.tex"] = comparison_latex(comparison)
        texts[f"findings{end}.csv"] = findings_frame(comparison).to_csv(index=False)
        texts[f"findings{end}.tex"] = findings_latex(comparison)
    if searches:
        texts["searches.csv"] = searches_frame(searches, objectives).to_csv(index=False)
        texts["searches.tex"] = searches_latex(searches, objectives)
    if texts:
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{key}{name}").write_text(text, encoding="utf-8")
    return [folder / f"{key}{name}" for name in texts]


def comparison_latex(comparison: ComparedMasks, columns: Sequence[str] = ()) -> str:
    """A comparison as a LaTeX table, densest mask first.

    Args:
        comparison: What was compared.
        columns: Further reported values, such as single tasks.
    """
    table = comparison_table(comparison, columns).without("block density", "diverged", "failed")
    return latex_table(
        table,
        "Means over seeds with 95% intervals over seeds and, where they are known, rows. Bold: "
        f"the best mean of a column among the masks that leave cells out. {PAIRS}",
    )


def findings_latex(comparison: ComparedMasks) -> str:
    """The declared comparisons as a LaTeX table."""
    return latex_table(
        findings_table(comparison).without("because it is", "sparser by"),
        f"Paired differences in {words(comparison.objectives[0].name)} over common seeds (and "
        "rows, where their number is given), corrected together (Holm, 5%); intervals at the "
        "corrected level.",
    )


def front_latex(studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]) -> str:
    """The joint front of searches as a LaTeX table; every score is of one seed."""
    return latex_table(
        front_table(studies, objectives).without("block density"),
        "The front of the searches. Its points were selected on these runs, one seed each. "
        f"{PAIRS}",
    )


def front_frame(
    studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]
) -> pd.DataFrame:
    """The joint front of searches, best score first, with every digit."""
    import pandas as pd

    owners = {id(record): name for name, study in studies.items() for record in study}
    front = pareto([record for study in studies.values() for record in study], objectives)
    return pd.DataFrame(
        {
            "strategy": r.proposer if r.role == "baseline" else owners[id(r)],
            "trial": r.number,
            "seed": r.seed,
            "mask": str(r.mask or ""),
            **r.measures,
            "effective_sparsity": sparsity_of(r),
            **{name: v for name, v in r.values.items() if not is_side_value(name)},
            "fingerprint": r.fingerprint,
        }
        for r in front
    )


def searches_frame(searches: Searches, objectives: Sequence[Objective]) -> pd.DataFrame:
    """What strategies reached at equal compute over search seeds, with every digit."""
    import pandas as pd

    rows = []
    for judged in filter(None, (objectives, without_rte(searches, objectives))):
        for each in compare_searches(curves_of(searches, judged)):
            row: dict[str, object] = {"strategy": each.strategy, "score": judged[0].name}
            row["n_searches"] = each.seeds
            for name, volume in (("trials", each.at_trials), ("compute", each.at_seconds)):
                ends = {"low": volume.low, "high": volume.high}
                row |= {f"at equal {name}": volume.value}
                row |= {f"at equal {name} {end}": value for end, value in ends.items()}
            if each.finding is not None:
                d = each.finding.difference
                row |= {"difference": d.value, "low": d.low, "high": d.high, "level": d.level}
                row |= {"adjusted_p": each.finding.adjusted, "n_seeds": d.n}
            rows.append(row | {"outcome": each.outcome})
    return pd.DataFrame(rows)


def searches_latex(searches: Searches, objectives: Sequence[Objective]) -> str:
    """The same as a LaTeX table."""
    return latex_table(
        searches_table(searches, objectives),
        "Hypervolume where every search still ran: means over search seeds with 95% intervals, "
        "and paired differences to the reference (Holm, 5%).",
    )


def findings_frame(
    comparison: ComparedMasks, reference: str = "dense", against: Against | None = None
) -> pd.DataFrame:
    """The declared comparisons, with every digit."""
    import pandas as pd

    return pd.DataFrame(
        {
            "mask": finding.mask,
            "against": finding.against,
            "role": finding.role,
            "outcome": "same mask" if finding.same else finding.outcome,
            "difference": finding.difference.value,
            "low": finding.difference.low,
            "high": finding.difference.high,
            "level": finding.difference.level,
            "adjusted_p": finding.adjusted,
            "n_seeds": finding.difference.n,
            "n_rows": finding.difference.n_rows,
            "sparser_by": finding.gap,
        }
        for finding in comparison.findings(reference, against)
    )


def latex_table(table: TextTable, caption: str) -> str:
    """A floating table with booktabs rules."""
    numbers = [cell.number for cell in table.head]
    head = [escape(words(f"{cell.text[:1].upper()}{cell.text[1:]}")) for cell in table.head]
    rows = [list(map(latex_cell, row, numbers)) for row in table.rows]
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escape(caption)}}}",
        f"  \\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
        r"    \toprule",
        "    " + " & ".join(head) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(row) + r" \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex_cell(cell: Cell, number: bool) -> str:
    """A cell as LaTeX; the minus signs of numbers are those of mathematics."""
    if cell.text == DASH:
        return "--"
    text = escape(cell.text)
    if number:
        text = re.sub(r"-(?=\d)", "$-$", text)
    if cell.code:
        text = f"\\texttt{{{text}}}"
    return f"\\textbf{{{text}}}" if cell.mark == "best" else text


def escape(text: str) -> str:
    r"""A text as LaTeX prints it.

    >>> print(escape("a_b >= 0.5 & 10%"))
    a\_b \textgreater{}= 0.5 \& 10\%
    """
    return "".join(SPECIAL.get(letter, letter) for letter in text)
