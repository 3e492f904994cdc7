"""A mask that beats no constant answer is nothing: on no front, never the best, marked."""

import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from figure_marks import words_of
from hypothesis import given
from hypothesis import strategies as st
from page_text import Page, page_of
from planted_glue import PlantedGlue
from rich.console import Console
from toy import ToyEvaluator

import masksearch as ms
from masksearch import masks
from masksearch.analysis.pareto import Snapshot, learned_nothing, pareto, ranked
from masksearch.cli.output import print_front
from masksearch.contracts import Evaluate, Objective, Record, Report
from masksearch.report.fronts import compared_points, draw_front, trial_points
from masksearch.report.section import Section
from masksearch.study.console import Watcher
from masksearch.study.status import read_status, status_lines
from masksearch.tasks.planted.process import PlantedProcess

GOALS = (Objective("glue", "max", 0.5), Objective("sparsity", "max", 0.0))
DULL = {"RTE": 0.55, "RTE/majority": 0.53, "RTE/low": 0.49, "RTE/accuracy": 0.55}
BRIGHT = {"RTE": 0.7, "RTE/majority": 0.53, "RTE/low": 0.64, "RTE/accuracy": 0.7}


# -- the rule ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "beaten"),
    [
        ({"a": 0.6, "a/majority": 0.5, "a/low": 0.51}, [True]),
        ({"a": 0.6, "a/majority": 0.5, "a/low": 0.5}, [False]),  # at it is not above it
        ({"a": 0.506, "a/majority": 0.5}, [True]),  # no interval over rows is known
        ({"a": 0.504, "a/majority": 0.5}, [False]),
        ({"loss": 6.0, "loss/majority": 6.5, "loss/low": 6.1}, [True]),  # less is better
        ({"loss": 6.4, "loss/majority": 6.5, "loss/low": 6.6}, [False]),
        ({"loss": 7.0, "loss/majority": 6.5}, [False]),
        ({"a": math.nan, "a/majority": 0.5}, [False]),
        ({"a": 0.9, "a/low": 0.8}, []),  # nobody says what a constant earns
        ({"a/majority": 0.5}, []),
        ({"a": 0.5, "a/majority": 0.5, "b": 0.3, "b/majority": 0.0}, [False, True]),
        ({}, []),
    ],
)
def test_a_task_is_learned_where_its_lower_bound_beats_a_constant_answer(values, beaten):
    record = Record(0, "done", Evaluate(masks.star()), values=values)
    assert learned_nothing(record) == (bool(beaten) and not any(beaten))


@st.composite
def searches(draw: st.DrawFn) -> list[Record]:
    """Records of two scores, some of which beat no constant answer, and some failed."""
    drawn = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans())))
    return [
        Record(
            number,
            "done" if score else "failed",
            Evaluate(masks.star()),
            values={"glue": score / 4} | (DULL if dull else BRIGHT),
            measures={"sparsity": sparsity / 4},
        )
        for number, (score, sparsity, dull) in enumerate(drawn)
    ]


@given(searches())
def test_what_has_learned_nothing_changes_no_front(records: Sequence[Record]) -> None:
    learned = [record for record in records if not learned_nothing(record)]
    assert pareto(records, GOALS) == pareto(learned, GOALS)
    assert ranked(records, GOALS) == ranked(learned, GOALS)
    state, alone = Snapshot(GOALS).after(*records), Snapshot(GOALS).after(*learned)
    assert (state.front, state.best) == (alone.front, alone.best)
    assert state.hypervolume == alone.hypervolume
    assert state.unlearned == sum(r.scored for r in records) - sum(r.scored for r in learned)


# -- a search in which nothing, or something, is learned ---------------------------------------
class Judge(ToyEvaluator):
    """Masks of at least a sparsity learn a task."""

    objectives = GOALS

    def __init__(self, sparsest: float) -> None:
        object.__setattr__(self, "sparsest", sparsest)

    def __call__(self, mask: ms.Mask, *, seed: int, workdir: Path) -> Any:
        sparsity = mask.sparsity(16)
        own = BRIGHT if sparsity >= self.sparsest else DULL
        yield Report(4, {"glue": own["RTE"] + 0.01 * sparsity + 0.001 * seed, **own})


def windows(trial: Any) -> ms.Mask:
    return masks.window(trial.suggest_int("reach", 0, 9))


@pytest.fixture
def searched(tmp_path: Path) -> Callable[[float], ms.Study]:
    def make(sparsest: float, trials: int = 8) -> ms.Study:
        options: dict[str, Any] = {"strategy": "random", "progress": None, "trials": trials}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ms.search(windows, Judge(sparsest), run=tmp_path / "run", **options)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("reach", "told"), [(0, []), (9, [5])])
def test_nothing_is_said_to_be_learned_before_the_strategy_has_spoken(tmp_path, reach, told):
    hand = {f"hand {wide}": masks.window(wide) for wide in range(4, 8)}  # none of which learns
    said: list[int] = []
    done = []

    def space(trial: Any) -> ms.Mask:
        return masks.window(trial.suggest_int("reach", reach, reach))

    with warnings.catch_warnings():
        warnings.showwarning = lambda text, *_: (
            said.append(len(done)) if "nothing learned" in str(text) else None
        )
        warnings.simplefilter("always")
        how: dict[str, Any] = {"strategy": "random", "progress": None, "baselines": hand}
        ms.search(
            space, Judge(0.7), run=tmp_path / "run", trials=1, listeners=[done.append], **how
        )
    assert len(done) == 5
    assert said == told


@pytest.mark.slow
def test_a_search_that_learned_nothing_says_so_everywhere(searched, capsys):
    study = searched(2.0)
    count = len(study.records())
    assert study.frontier() == []
    said = f"nothing learned: none of the {count} finished trials scores better than a constant"
    assert "; nothing learned, hence no front" in repr(study)
    assert "; nothing learned, hence no front" in study._repr_html_()
    state = read_status(study.run)
    assert (state["front"], state["hypervolume"], state["best"]) == (0, 0.0, None)
    lines = "\n".join(status_lines(study.run, state))
    assert f"front: 0 masks, hypervolume 0; {count} have learned nothing" in lines
    assert said in " ".join(lines.split())
    print_front(study, as_json=False)
    printed = capsys.readouterr().out
    assert said in printed
    assert "sparsity" not in printed  # no table without rows
    print_front(study, as_json=True)
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.nightly
def test_the_page_of_a_search_that_learned_nothing(searched):
    study = searched(2.0)
    page = study.report()
    text = Page(page.read_text(encoding="utf-8")).text
    nothing = f"Nothing learned: none of the {len(study.records())} finished trials scores better"
    assert text.count(nothing) == 2
    assert "of them on the front" not in text
    assert "on the front is from one seed" not in text
    assert "flatters them" not in text  # nothing was selected
    assert "No finished trial" not in text
    assert not list((page.parent / "tables").glob("front*"))


@pytest.mark.nightly
def test_the_best_of_nothing_is_given_with_a_warning(searched):
    study = searched(2.0)
    with pytest.warns(UserWarning, match="trial . has learned nothing, like all others"):
        assert study.best() in study.records()
    study = searched(0.5, trials=12)  # other masks, the same records first
    assert study.best(0.4) in study.frontier() or learned_nothing(study.best(0.4))


@pytest.mark.nightly
def test_some_masks_that_learned_nothing_are_counted_and_marked(searched, capsys):
    study = searched(0.6)
    records, front = study.records(), study.frontier()
    dull = [record for record in records if learned_nothing(record)]
    assert 0 < len(dull) < len(records)
    assert front
    assert not any(map(learned_nothing, front))
    assert f"a front of {len(front)}, {len(dull)} learned nothing" in repr(study)
    assert f"{len(dull)} learned nothing" in study._repr_html_()
    print_front(study, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{len(dull)} of the {len(records)} finished trials have" in printed
    told = page_of(Section({"tpe": records}, study.objectives))
    figure = draw_front(
        trial_points(Section({"tpe": records}, study.objectives)), study.objectives
    )
    assert "no better than a constant answer" in words_of(figure)
    head, row = told["runs"].head, told["runs"].rows[0]
    shown = {name.text: cell.text for name, cell in zip(head, row, strict=True)}
    assert shown["learned nothing"] == str(len(dull))
    assert len(told["front"].rows) == len(front)
    infeasible = {trial.number for trial in study.optuna.trials if any(trial.constraints.values())}
    assert infeasible == {record.number for record in dull}
    assert {trial.number for trial in study.optuna.best_trials} >= {r.number for r in front}


def test_lines_of_a_running_search_mark_them(record):
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with Watcher(GOALS, 2, "tpe", console) as watcher:
        watcher(record(0, 0.55, values=DULL))
        watcher(record(1, 0.7, values=BRIGHT))
    dull, bright = console.file.getvalue().splitlines()
    assert "learned nothing  " in dull
    assert "front" not in dull
    assert "best" not in dull
    assert "nothing" not in bright
    watcher = Watcher(GOALS, 2, "tpe", Console(file=io.StringIO()))
    watcher.restore([record(0, 0.55, values=DULL)])
    assert watcher.standing() == ["front 0", "nothing learned yet"]
    watcher.restore([record(0, 0.55, values=DULL), record(1, 0.7, values=BRIGHT)])
    assert watcher.standing()[0] == "front 1"
    assert "front 1 (new)  in 0:00  best so far" in bright


def test_a_study_without_constant_answers_says_nothing_of_them(record):
    records = [record(0, 0.4), record(1, 0.6, masks.window(2))]
    told = page_of(Section({"tpe": records}, GOALS))
    assert "learned nothing" not in [cell.text for cell in told["runs"].head]
    assert not any("nothing" in line for line in told["verdicts"] + told["cautions"])


# -- comparisons -------------------------------------------------------------------------------
@pytest.fixture
def comparison(compared, shape):
    dull = {"dull": (masks.window(1), [0.9, 0.91]), "dense": (masks.full(), [0.5, 0.5])}
    bright = {"bright": (masks.window(2), [0.7, 0.72]), "star": (masks.star(), [0.6, 0.62])}
    records = [*compared(dull, values=DULL), *compared(bright, values=BRIGHT)]
    return ms.Comparison(tuple(records), GOALS, shape=shape)


def test_masks_of_a_comparison_are_marked_and_on_no_front(comparison):
    entries = comparison.entries
    assert [e.name for e in entries.values() if e.learned_nothing] == ["dull", "dense"]
    assert entries["dull"].at_majority == {"RTE"}
    frame = comparison.frame().set_index("mask")
    assert frame["learned_nothing"].to_dict() == {n: e.learned_nothing for n, e in entries.items()}
    (told,) = page_of(Section({}, comparison.objectives, {"c": comparison}))["comparisons"]
    front = {point.name for point in compared_points(comparison) if point.front}
    assert front
    assert front <= {"bright", "star"}
    assert {each["name"] for each in told["points"] if each["nothing"]} == {"dull", "dense"}
    marks = {row[0].text: [cell.mark for cell in row] for row in told["table"].rows}
    assert "majority" in marks["dull"]
    assert "majority" not in marks["bright"]


def test_a_mask_that_learned_nothing_wins_nothing(compared, shape):
    scores = [0.9, 0.91, 0.905, 0.902], [0.7, 0.72, 0.712, 0.709]
    for dull, won in ((True, ["not distinguishable"]), (False, ["better"])):
        mine = compared({"mine": (masks.window(1), scores[0])}, values=DULL if dull else BRIGHT)
        star = compared({"star": (masks.star(), scores[1])}, values=BRIGHT)
        found = ms.Comparison((*mine, *star), GOALS, shape=shape)
        assert [finding.outcome for finding in found.findings()] == won
        assert (
            "Learned nothing, so never better than another mask: mine (" in found.verdict()
        ) == dull


def test_a_comparison_that_learned_nothing_says_so_once(compared, shape):
    runs = {"mine": (masks.window(1), [0.5]), "star": (masks.star(), [0.5])}
    said = ms.Comparison(tuple(compared(runs, values=DULL)), GOALS, shape=shape).verdict()
    assert "Learned nothing, so never better than another mask: every mask (" in said
    assert "says nothing about" not in said


def test_side_values_are_no_columns(comparison):
    (told,) = page_of(Section({}, comparison.objectives, {"c": comparison}))["comparisons"]
    names = [*comparison.frame().columns, *(cell.text for cell in told["tasks"].head)]
    assert not [name for name in names if name.endswith(("/majority", "/low"))]
    assert comparison.tasks == ["RTE"]  # its accuracy is the same figure
    assert {"RTE", "RTE at majority"} <= set(names)


def test_seeds_of_a_mask_are_judged_by_their_means(compared, shape):
    """One seed of three that has learned much is a mask that has learned."""
    mask = masks.window(1)
    [first, *others] = compared({"mine": (mask, [0.5, 0.6, 0.9])}, values=DULL)
    last = Record(**{**vars(others[-1]), "values": {"glue": 0.9} | BRIGHT | {"RTE/low": 0.85}})
    some = ms.Comparison((first, others[0], last), GOALS, shape=shape)
    assert not some.entries["mine"].learned_nothing  # (.49 + .49 + .85) / 3 > .53
    assert ms.Comparison((first, *others), GOALS, shape=shape).entries["mine"].learned_nothing


# -- real data ---------------------------------------------------------------------------------
@pytest.mark.nightly
def test_four_steps_of_glue_learn_nothing(tmp_path, command):
    """The whole command: four steps, tasks that need the text, and no front of their noise."""
    process = PlantedProcess(length=12, vocabulary=8, offsets=(6,), keys=1)
    corpus = PlantedGlue(process, lines=300, valid_lines=60, rows=120, dev_rows=360)
    folder = corpus.write(tmp_path / "planted")
    (tmp_path / "own.py").write_text(
        "from masksearch import masks\n\n"
        "def space(trial):\n    return masks.window(trial.suggest_int('reach', 1, 5))\n"
        "from planted_glue import PLANTED\n"
        "acceptability, paraphrase = PLANTED['acceptability'], PLANTED['paraphrase']\n"
    )
    own = tmp_path / "own.py"
    out, err = command(
        *("search", f"{own}:space", "--strategy", "random"),
        *("--corpus", folder / "text", "--glue", folder, "--tasks"),
        f"{own}:acceptability,{own}:paraphrase",
        *("--steps", 4, "--size", "nano", "--length", corpus.length, "--set", "rows=60"),
        *("--set", "epochs=1", "--set", f"cache={tmp_path / 'cache'}", "--set", "device=cpu"),
        *("--trials", 5, "--run", tmp_path / "run"),
    )
    study = ms.open_study(tmp_path / "run")
    assert study.frontier() == []
    assert f"nothing learned: none of the {len(study.records())} finished trials" in out
    assert "learned nothing" in err
    assert read_status(study.run)["hypervolume"] == 0.0
