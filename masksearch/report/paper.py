r"""Tables for papers: CSV with every digit, and LaTeX (booktabs) with rounded figures.

A LaTeX table needs `\usepackage{booktabs}` and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masksearch.analysis.compare import Against, ComparedMasks
from masksearch.analysis.pareto import pareto, sparsities_differ, sparsity_of
from masksearch.analysis.search_curves import Searches, compare_searches, curves_of, without_rte
from masksearch.analysis.stats import decimals_for, format_estimate, format_p
from masksearch.contracts import Objective, Record, is_side_value
from masksearch.report.tables import DASH, SHARES, searches_table, words

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
OF_TABLE = r"Of table (\%)"
PAIRS = " Sparsity: what is left out of the pairs that real tokens form; of table: of all cells."
NONE = "--"


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

    Of the masks that leave cells out, the best mean of each column is bold; nothing is where all
    are equal.

    Args:
        comparison: The masks.
        columns: Further reported values, such as single tasks.
    """
    goals = {o.name: o.goal for o in comparison.objectives}
    judged = [name for name in goals if name not in SHARES]
    frame = comparison.frame()
    cells: dict[str, list[str]] = {}
    for name in (*judged, *columns):
        those = [name, f"{name} low", f"{name} high"] if name in judged else [name]
        places = decimals_for(frame[those].to_numpy().flat)
        sparse = frame[name].where(frame["effective_sparsity"] > 0)
        lower = goals.get(name, "min" if name.endswith("loss") else "max") == "min"
        best = sparse.min() if lower else sparse.max()
        if sparse.nunique() < 2:  # nothing is better than the rest
            best = math.nan
        cells[name] = [
            figures(*values, decimals=places, bold=sparsity > 0 and math.isclose(values[0], best))
            for sparsity, values in zip(
                frame["effective_sparsity"], frame[those].to_numpy().tolist(), strict=True
            )
        ]
    two = (OF_TABLE,) * sparsities_differ(comparison.records)
    if comparison.fronts is not None:
        for title, name, places in (
            ("score in search", "score in search", decimals_for(frame["score in search"])),
            ("P(on front)", "p on front", 2),
        ):
            cells[title] = [figures(value, decimals=places) for value in frame[name]]
    rows = [
        [
            escape(row["mask"]),
            escape(row["kind"]),
            share(row["effective_sparsity"]),
            *(share(row["sparsity"]) for _ in two),
            share(1 - row["effective_sparsity"]),
            *(cells[name][place] for name in cells),
            str(row["n_seeds"]),
        ]
        for place, row in enumerate(frame.to_dict("records"))
    ]
    head = ["Mask", "Kind", r"Sparsity (\%)", *two, r"Density (\%)", *map(heading, cells), "Seeds"]
    return latex_table(
        head,
        rows,
        "ll" + "r" * (len(head) - 2),
        "Means over seeds with 95\\% intervals over seeds and, where they are known, rows. "
        "Bold: the best mean of a column among the masks "
        f"that leave cells out.{PAIRS * len(two)}",
    )


def findings_latex(comparison: ComparedMasks) -> str:
    """The declared comparisons as a LaTeX table."""
    findings = comparison.findings()
    each = [finding.difference for finding in findings]
    places = decimals_for(value for d in each for value in (d.mean, d.low, d.high))
    rows = [
        [
            escape(finding.mask),
            escape(finding.against),
            figures(d.mean, d.low, d.high, decimals=places, signed=True),
            NONE if math.isnan(d.low) else f"{100 * d.level:.4g}\\%",
            NONE if math.isnan(d.low) else escape(format_p(finding.adjusted)),
            str(d.n_seeds),
            f"{finding.n_rows:,}" if finding.n_rows else NONE,
            "same mask" if finding.same else finding.outcome,
        ]
        for finding, d in zip(findings, each, strict=True)
    ]
    score = escape(words(comparison.objectives[0].name))
    return latex_table(
        [
            *("Mask", "Against", f"Difference in {score}", "Level", "Adjusted $p$"),
            *("Seeds", "Rows", "Outcome"),
        ],
        rows,
        "llrrrrrl",
        "Paired differences over common seeds (and rows, where their number is given), corrected "
        "together (Holm, 5\\%); intervals at the "
        "corrected level.",
    )


def front_latex(studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]) -> str:
    """The joint front of searches as a LaTeX table; every score is of one seed."""
    frame = front_frame(studies, objectives)
    scores = [o.name for o in objectives if o.name not in SHARES]
    places = {name: decimals_for(frame[name]) for name in scores}
    two = (OF_TABLE,) * any(frame["sparsity"] != frame["effective_sparsity"])
    rows = [
        [
            escape(row["strategy"]),
            str(row["trial"]),
            share(row["effective_sparsity"]),
            *(share(row["sparsity"]) for _ in two),
            share(1 - row["effective_sparsity"]),
            *(figures(row[name], decimals=places[name]) for name in scores),
            str(row["seed"]),
            r"\texttt{" + escape(row["mask"]) + "}",
        ]
        for row in frame.to_dict("records")
    ]
    head = ["Strategy", "Trial", r"Sparsity (\%)", *two, r"Density (\%)", *map(heading, scores)]
    return latex_table(
        [*head, "Seed", "Mask"],
        rows,
        "l" + "r" * len(head) + "l",
        "The front of the searches. Its points were selected on these runs, one seed each."
        f"{PAIRS * len(two)}",
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
            "strategy": r.origin if r.origin.startswith("baseline:") else owners[id(r)],
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
                row |= {f"at equal {name}": volume.mean}
                row |= {f"at equal {name} {end}": value for end, value in ends.items()}
            if (d := each.difference) is not None:
                row |= {"difference": d.mean, "low": d.low, "high": d.high, "level": d.level}
                row |= {"adjusted_p": each.adjusted, "n_seeds": d.n_seeds}
            rows.append(row | {"outcome": each.outcome})
    return pd.DataFrame(rows)


def searches_latex(searches: Searches, objectives: Sequence[Objective]) -> str:
    """The same as a LaTeX table."""
    found = searches_table(searches, objectives)
    return latex_table(
        [heading(cell.text).capitalize() for cell in found.head],
        [
            [NONE if c.text == DASH else escape(c.text).replace("-", "$-$") for c in row]
            for row in found.rows
        ],
        "ll" + "r" * (len(found.head) - 3) + "l",
        "Hypervolume where every search still ran: means over search seeds with 95\\% intervals, "
        "and paired differences to the reference (Holm, 5\\%).",
    )


def findings_frame(
    comparison: ComparedMasks, reference: str = "dense", against: Against | None = None
) -> pd.DataFrame:
    """The declared comparisons, with every digit; `adjusted_p` decides, `pooled_p` does not."""
    import pandas as pd

    return pd.DataFrame(
        {
            "mask": finding.mask,
            "against": finding.against,
            "role": finding.role,
            "outcome": "same mask" if finding.same else finding.outcome,
            "difference": finding.difference.mean,
            "low": finding.difference.low,
            "high": finding.difference.high,
            "level": finding.difference.level,
            "adjusted_p": finding.adjusted,
            "pooled_p": finding.pooled,
            "n_seeds": finding.difference.n_seeds,
            "n_rows": finding.n_rows,
            "sparser_by": finding.gap,
        }
        for finding in comparison.findings(reference, against)
    )


def latex_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], columns: str, caption: str
) -> str:
    """A floating table with booktabs rules; cells are LaTeX already."""
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        "    " + " & ".join(head) + r" \\",
        r"    \midrule",
        *("    " + " & ".join(row) + r" \\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    r"""A text as LaTeX prints it.

    >>> print(escape("a_b >= 0.5 & 10%"))
    a\_b \textgreater{}= 0.5 \& 10\%
    """
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def heading(name: str) -> str:
    """A reported value's name as the head of a column."""
    return escape(words(name))


def figures(
    mean: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    decimals: int,
    signed: bool = False,
    bold: bool = False,
) -> str:
    """A mean with its interval, its minus signs those of mathematics."""
    if math.isnan(mean):
        return NONE
    text = format_estimate(mean, low, high, signed=signed, decimals=decimals)
    text = text.replace("-", "$-$")
    return f"\\textbf{{{text}}}" if bold else text


def share(value: float) -> str:
    """A share as a percentage without its sign."""
    return NONE if math.isnan(value) else f"{100 * value:.1f}"
