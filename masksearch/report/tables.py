"""The tables that pages, terminals, notebooks and papers show, each described once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import optuna

from masksearch.analysis.compare import ComparedMasks
from masksearch.analysis.pareto import (
    SPARSITIES,
    default_goal,
    hypervolume,
    learned_nothing,
    pareto,
    score_title,
    sparsities_differ,
    sparsity_of,
)
from masksearch.analysis.runs import Against
from masksearch.analysis.search_curves import Searches, compare_searches, curves_of, without_rte
from masksearch.analysis.stats import Interval, decimals_for, format_estimate, format_p
from masksearch.contracts import NLL_INCREASE, Objective, Record, is_side_value
from masksearch.gates.result import Health
from masksearch.report.layout import DASH, Cell, TextTable, text_table, words
from masksearch.study.records import drawn_distributions
from masksearch.study.status import in_words
from masksearch.study.store import directions, quiet

SHARES = (*SPARSITIES, "block_density", "work")  # are printed as percentages
PAIRS = "Sparsity: left out of the non-padding query-key pairs (of the table: of all cells)."
WORK = " Work: the multiplications that are left once tokens that nobody needs are left out."
TABLE = "of the table"  # heads the sparsity of the n x n cells where it is another one
ENDS = {  # how the table of runs calls what became of trials
    **{"finished": "done", "reused": "reused", "stopped early": "stopped"},
    **{"failed": "failed", "running": "running"},
}
IMPORTANCE_TRIALS = 20  # scored draws from which parameters are told apart
TOO_FEW = f"(told from {IMPORTANCE_TRIALS} scored draws on)"
IMPORTANCE = (
    "Importance of the parameters, in shares: for being in the best quarter of the draws by all "
    "objectives (front), and by each alone. It has no interval: few draws say little."
)
REFERENCE = "="  # marks the budget that is the reference itself
CARD = ("figure", "value", "what it means")  # head of DAM's health card


def percent(value: float) -> str:
    """A share as a percentage; a dash for NaN."""
    return DASH if math.isnan(value) else f"{100 * value:.1f}%"


def runs_table(
    studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]
) -> TextTable:
    """The trials, costs and results of each strategy; baselines in rows of their own."""
    nothing = any(r.scored and learned_nothing(r) for study in studies.values() for r in study)
    rows = []
    for name, study in studies.items():
        hand = [record for record in study if record.role == "baseline"]
        searched = [record for record in study if record.role != "baseline"]
        for title, group in ((name, searched), (f"{name}: baselines", hand)):
            if not group and title != name:
                continue
            statuses: list[str] = [record.status for record in group]
            cells = {"strategy": title, "trials": str(len(group))}
            cells |= {head: str(statuses.count(status)) for head, status in ENDS.items()}
            if nothing:
                unlearned = sum(record.scored and learned_nothing(record) for record in group)
                cells["learned nothing"] = str(unlearned)
            masks = {record.fingerprint for record in group if record.fingerprint}
            points = [[r.value(o.name) for o in objectives] for r in pareto(group, objectives)]
            seconds = in_words(sum(record.seconds for record in group))
            cells |= {"masks": str(len(masks)), "compute": seconds}
            rows.append(cells | {"hypervolume": digits(hypervolume(points, objectives), 4)})
    return text_table(rows, text=("strategy",))


def searches_table(searches: Searches, objectives: Sequence[Objective]) -> TextTable:
    """Hypervolumes of strategies at equal compute over search seeds, with and without RTE."""
    rows: list[dict[str, str]] = []
    data: list[dict[str, Any]] = []
    for goals in filter(None, (objectives, without_rte(searches, objectives))):
        compared = compare_searches(curves_of(searches, goals))
        both = [volume for each in compared for volume in (each.at_trials, each.at_seconds)]
        decimals = decimals_for(value for v in both for value in (v.value, v.low, v.high))
        for each in compared:
            score, seeds = goals[0].name, each.seeds
            whole: dict[str, Any] = {"strategy": each.strategy, "score": score}
            whole["n_searches"] = seeds
            for name, volume in (("trials", each.at_trials), ("compute", each.at_seconds)):
                whole |= {f"at equal {name}": volume.value}
                whole |= {f"at equal {name} low": volume.low, f"at equal {name} high": volume.high}
            difference, adjusted = DASH, DASH
            if (judged := each.finding) is not None:
                d = judged.difference
                difference = d.text(signed=True, decimals=decimals)
                whole |= {"difference": d.value, "low": d.low, "high": d.high, "level": d.level}
                whole |= {"adjusted_p": judged.adjusted, "n_seeds": d.n}
                if not math.isnan(d.p_value):
                    adjusted = format_p(judged.adjusted)
            rows.append(
                {
                    "strategy": each.strategy,
                    "score": words(score),
                    "searches": str(seeds),
                    "at equal trials": each.at_trials.text(decimals=decimals),
                    "at equal compute": each.at_seconds.text(decimals=decimals),
                    "difference": difference,
                    "adjusted p": adjusted,
                    "outcome": each.outcome,
                }
            )
            data.append({**whole, "outcome": each.outcome})
    return text_table(
        rows,
        text=("strategy", "score", "outcome"),
        data=data,
        caption="Hypervolume where every search still ran: means over search seeds, from three on "
        "with 95% intervals, and paired differences to the reference (Holm, 5%).",
    )


def by_origin(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by what has proposed them, as the tables take those of several searches."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.origin, []).append(record)
    return groups


def importance_table(
    studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]
) -> TextTable:
    """How much each parameter of a space mattered, by strategy: shares, by PED-ANOVA (Watanabe et
    al., IJCAI 2023, arXiv 2304.10255; Optuna's own), of reaching the front and of each
    objective."""
    rows: list[dict[str, str]] = []
    data: list[dict[str, Any]] = []
    goals = {"front": objectives} if len(objectives) > 1 else {}
    goals |= {objective.name: (objective,) for objective in objectives}
    for name, records in studies.items():
        apt = [r for r in records if r.scored and not learned_nothing(r)]
        apt = [r for r in apt if drawn_distributions(r)]
        if len({each for record in apt for each in record.params}) < 2:
            continue
        about: dict[str, Any] = {"strategy": name, "parameter": TOO_FEW, "trials": len(apt)}
        if len(apt) < IMPORTANCE_TRIALS:
            rows.append(
                {**about, "trials": str(len(apt)), **{words(what): DASH for what in goals}}
            )
            continue
        shares = {what: importances(apt, each) for what, each in goals.items()}
        for each in next(iter(shares.values())):
            parts = {what: share[each] for what, share in shares.items()}
            data.append({**about, "parameter": each, **parts})
            cells = {words(what): percent(part) for what, part in parts.items()}
            rows.append({"strategy": name, "parameter": each, "trials": str(len(apt)), **cells})
    return text_table(rows, text=("strategy", "parameter"), data=data, caption=IMPORTANCE)


def importances(records: Sequence[Record], objectives: Sequence[Objective]) -> dict[str, float]:
    """Parameter -> its share, by the best quarter of scored draws in these objectives."""
    with quiet():
        study = optuna.create_study(directions=directions(objectives))
        for record in records:
            kinds = drawn_distributions(record)
            trial = optuna.trial.create_trial(
                params={name: record.params[name] for name in kinds},
                distributions=kinds,
                values=[record.value(objective.name) for objective in objectives],
            )
            study.add_trial(trial)
        quarter = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        return optuna.importance.get_param_importances(study, evaluator=quarter)


def front_table(
    studies: Mapping[str, Sequence[Record]], objectives: Sequence[Objective]
) -> TextTable:
    """The joint front of all studies, best score first."""
    scores = [objective.name for objective in objectives if objective.name not in SHARES]
    owners = {id(record): name for name, study in studies.items() for record in study}
    rows: list[dict[str, Cell | str]] = []
    front = pareto([r for study in studies.values() for r in study], objectives)
    parts = dict.fromkeys(name for record in front for name in record.values)
    titles = {name: score_title(name, front) for name in scores}
    scores += [name for name in parts if name.startswith(f"{NLL_INCREASE}/")]
    two, works = sparsities_differ(front), any("work" in record.measures for record in front)
    decimals = {name: decimals_for(record.value(name) for record in front) for name in scores}
    data = []
    for record in front:
        origin = record.proposer if record.role == "baseline" else owners[id(record)]
        mask = Cell(str(record.mask or ""), code=True)
        rows.append(
            {
                "strategy": origin,
                "trial": str(record.number),
                **{
                    words(titles.get(name, name)): format_estimate(
                        record.value(name), decimals=decimals[name]
                    )
                    for name in scores
                },
                "sparsity": percent(sparsity_of(record)),
                **({TABLE: percent(record.measures["sparsity"])} if two else {}),
                "block density": percent(record.measures.get("block_density", math.nan)),
                **({"work": percent(record.measures.get("work", math.nan))} if works else {}),
                "seed": str(record.seed),
                "mask": mask,
            }
        )
        data.append(
            {
                "strategy": origin,
                "trial": record.number,
                "seed": record.seed,
                "mask": mask.text,
                **{f"params_{name}": value for name, value in record.params.items()},
                **record.measures,
                "effective_sparsity": sparsity_of(record),
                **{name: v for name, v in record.values.items() if not is_side_value(name)},
                "fingerprint": record.fingerprint,
            }
        )
    return text_table(
        rows,
        text=("strategy", "mask"),
        data=data,
        caption="The front of the searches. Its points were selected on these runs, one seed "
        f"each. {PAIRS}{WORK * works}",
        aside=("block density", "work"),
    )


def comparison_table(comparison: ComparedMasks, columns: Sequence[str] = ()) -> TextTable:
    """One row per mask: its scores' means over seeds with intervals, and the majority mark.

    Args:
        comparison: What was compared.
        columns: Further reported values, whose means are given.
    """
    if not comparison.entries:
        return TextTable()
    columns = [columns] if isinstance(columns, str) else columns
    columns = [name for name in columns if name != comparison.title]
    judged = [o.name for o in comparison.objectives if o.name not in SHARES]
    two, score = sparsities_differ(comparison.records), comparison.objectives[0].name
    frame = comparison.frame()
    data = frame.to_dict("records")
    decimals = {
        name: decimals_for(frame[[name, f"{name} low", f"{name} high"]].to_numpy().flat)
        for name in judged
    } | {name: decimals_for(frame[name]) for name in columns}
    sparse = frame[frame["effective_sparsity"] > 0]
    best: dict[str, float] = {}  # where no two means differ, none is the best
    for name in (*judged, *columns):
        if sparse[name].nunique() > 1:
            goal = default_goal(name, comparison.objectives)
            best[name] = sparse[name].min() if goal == "min" else sparse[name].max()
    rows = []
    for row in data:
        note = "" if row["expression"].removesuffix("()") == row["mask"] else row["expression"]
        mark: Literal["", "searched"] = "searched" if row["kind"] == "searched" else ""
        cells: dict[str, Cell | str] = {
            "mask": Cell(row["mask"], mark=mark, note=note),
            "kind": row["kind"],
            "sparsity": percent(row["effective_sparsity"]),
            **({TABLE: percent(row["sparsity"])} if two else {}),
            "density": percent(1 - row["effective_sparsity"]),
            "block density": percent(row["block_density"]),
            **({"work": percent(row["work"])} if "work" in row else {}),
        }
        for name in (*judged, *columns):
            cell = _task_cell(row, name, decimals[name], interval=name in judged)
            if name in judged and row["n_seeds"] == 1 and not comparison.seedless:
                cell = replace(cell, text=f"{cell.text} (1 seed)")
            if row["effective_sparsity"] > 0 and row[name] == best.get(name):
                cell = replace(cell, mark=cell.mark or "best")
            cells[comparison.title if name == score else name] = cell
        if comparison.fronts is not None:  # what the search had said, and what is left of it
            before, chance = row["score in search"], row["p on front"]
            cells["score in search"] = format_estimate(before, decimals=decimals[judged[0]])
            cells["P(on front)"] = DASH if math.isnan(chance) else f"{chance:.2f}"
        cells |= {} if comparison.seedless else {"seeds": str(row["n_seeds"])}
        rows.append(cells | {n: str(row[n] or DASH) for n in ("diverged", "failed")})
    return text_table(
        rows,
        text=("mask", "kind"),
        data=data,
        caption="Means over seeds with 95% intervals over seeds and, where they are known, rows. "
        "Bold: the best mean of a column among the masks that leave cells out. "
        + PAIRS
        + WORK * ("work" in frame),
        aside=("block density", "work", "diverged", "failed"),
    )


def tasks_table(comparison: ComparedMasks) -> TextTable:
    """One row per mask: the mean over seeds of everything else that was reported."""
    tasks, frame = comparison.tasks, comparison.frame()
    decimals = {name: decimals_for(frame[name]) for name in tasks}
    rows = [
        {"mask": row["mask"]}
        | {name: _task_cell(row, name, decimals[name], interval=False) for name in tasks}
        for row in frame.to_dict("records")
    ]
    return text_table(rows if tasks else [], text=("mask",))


def _task_cell(row: Mapping[Any, Any], name: str, decimals: int, interval: bool) -> Cell:
    """A mean, with its interval where asked for, marked where it is at the majority's."""
    bounds = (row[f"{name} low"], row[f"{name} high"]) if interval else ()
    text = format_estimate(row[name], *bounds, decimals=decimals)
    nothing = interval and row.get("learned_nothing", False)
    return Cell(text, mark="majority" if nothing or row.get(f"{name} at majority") else "")


def findings_table(
    comparison: ComparedMasks, reference: str = "dense", against: Against | None = None
) -> TextTable:
    """The declared comparisons, one row each; see `Comparison.findings`."""
    searched = {e.name for e in comparison.entries.values() if e.kind == "searched"}
    rows: list[dict[str, Cell | str]] = []
    data, findings = [], comparison.findings_to_show(reference, against)
    differences = [finding.difference for finding in findings]
    decimals = decimals_for(value for d in differences for value in (d.value, d.low, d.high))
    for finding in findings:
        d, interval, adjusted = finding.difference, DASH, DASH
        if not math.isnan(d.p_value):
            interval = f"[{d.low:+z.{decimals}f}, {d.high:+z.{decimals}f}] at {100 * d.level:.4g}%"
            adjusted = format_p(finding.adjusted)
        rows.append(
            {
                "mask": Cell(finding.mask, mark="searched" if finding.mask in searched else ""),
                "against": finding.against,
                "because it is": finding.role,
                "outcome": finding.words,
                "difference": format_estimate(d.value, signed=True, decimals=decimals),
                "interval": interval,
                "adjusted p": adjusted,
                **({} if d.seedless else {"common seeds": str(d.n)}),
                "rows": f"{d.n_rows:,}" if d.n_rows else DASH,
                "sparser by": DASH
                if math.isnan(finding.gap)
                else f"{100 * finding.gap:+.1f} points",
            }
        )
        data.append(
            {
                "mask": finding.mask,
                "against": finding.against,
                "role": finding.role,
                "outcome": finding.words,
                "margin": math.nan if finding.margin is None else finding.margin,
                "difference": d.value,
                "low": d.low,
                "high": d.high,
                "level": d.level,
                "adjusted_p": finding.adjusted,
                "n_seeds": d.n,
                "n_rows": d.n_rows,
                "sparser_by": finding.gap,
            }
        )
    score = words(comparison.title)
    return text_table(
        rows,
        text=("mask", "against", "because it is", "outcome"),
        data=data,
        caption=f"Paired differences in {score} over common seeds (and rows, where their number "
        "is given), corrected together (Holm, 5%); intervals at the corrected level.",
        aside=("because it is", "sparser by"),
    )


def health_table(health: Health) -> TextTable:
    """DAM's health card in words: a figure, its value, and what it means."""
    return text_table([dict(zip(CARD, row, strict=True)) for row in health.rows], text=CARD)


def interval_text(row: Any, name: str) -> str:
    """A statistic of a row of a proxy card's frame, with its interval."""
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"]).text(decimals=2)


def budgets_table(card: Any) -> TextTable:
    """One row a budget of a proxy card: agreement with the reference, regret."""
    several = card.frame["schedule"].nunique() > 1
    rows = [
        {
            **({"schedule": row["schedule"]} if several else {}),
            "steps": f"{row['budget']:,}" + (f" {REFERENCE}" if row["reference"] else ""),
            "masks": str(row["masks"]),
            "tau-b in bands": interval_text(row, "within"),
            "between seeds": interval_text(row, "between_seeds"),
            f"regret ({card.target})": digits(row["regret"]),
            "at random": digits(row["regret_at_random"]),
        }
        for _, row in card.frame.iterrows()
    ]
    return text_table(rows, text=("schedule",))


def digits(value: float, decimals: int = 3) -> str:
    """A number to so many significant digits; a dash where it is not defined."""
    return DASH if math.isnan(value) else f"{value:.{decimals}g}"
