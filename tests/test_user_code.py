"""A strategy in a file of the user's own."""

import json
import re
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from optuna.trial import FixedTrial
from other_process import python
from toy import ToyEvaluator

from masksearch import masks, search
from masksearch.errors import MaskSearchError, ResumeError, SearchError
from masksearch.executors.local import Local
from masksearch.report.collect import studies_in
from masksearch.user_code import definition_hashes, load_function

FILE = '''
from masksearch import masks
from masksearch.contracts import Evaluate, Proposal


class Windows:
    """Every reach from `first` on, until one has a loss below `enough`."""

    def __init__(self, seed, objectives, first=0, enough=0.0):
        self.next, self.first, self.enough = 0, first + seed, enough

    def ask(self):
        self.next += 1
        reach = self.first + self.next - 1
        return Proposal(self.next - 1, Evaluate(masks.window(reach)), {"reach": reach}, "mine")

    def tell(self, record):
        self.next = max(self.next, record.number + 1)


def made(seed, **options):
    return Windows(seed, (), **options)


def wants_more(seed, temperature):
    return Windows(seed, ())


def nothing(seed):
    return [seed]
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_strategy.py"
    path.write_text(FILE)
    return path


@pytest.mark.nightly
def test_class_and_function_get_what_they_name(file):
    for name in ("Windows", "made"):
        given = {"strategy": f"{file}:{name}", "strategy_options": {"first": 4}, "seed": 3}
        for trials in (1, 3):  # the second call tells it what the first one found
            study = search(None, ToyEvaluator(), run=file.parent / name, trials=trials, **given)
            found = [(record.number, record.params["reach"]) for record in study.records()]
            assert found == [(0, 7), (1, 8), (2, 9)][:trials]


@pytest.mark.slow
def test_a_strategy_is_named_and_an_edited_one_is_another_search(file):
    how = {"run": file.parent / "run", "strategy": f"{file}:Windows"}
    how |= {"strategy_options": {"first": 2}}
    for trials in (2, 3):
        study = search(None, ToyEvaluator(), trials=trials, **how)
    assert [str(r.mask) for r in study.records()] == ["window(2)", "window(3)", "window(4)"]
    assert study.store.facts()["strategy"] == "Windows"
    file.write_text(f"{FILE}# changed\n")
    with pytest.raises(ResumeError, match="strategy_source: was"):
        search(None, ToyEvaluator(), trials=4, **how)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Windws", {}, "function or class in .*'Windws'.*Windows"),
        ("Windows", {"frist": 1}, "option of strategy .*'frist'.*first"),
        ("wants_more", {}, "wants 'temperature', .* gives space, objectives, seed"),
        ("nothing", {}, "makes a list, .* has no ask and no tell; write ask"),
        ("{}/none.py:Windows", {}, r"none\.py: no such file"),
        ("{}/late.py:mask", {}, "late.py, line 3: .*did you mean 'window'"),
    ],
)
def test_mistakes_are_said_in_words(file, name, options, message):
    (file.parent / "late.py").write_text("from masksearch import masks\n\nmask = masks.windw(3)\n")
    place = name.format(file.parent) if "{" in name else f"{file}:{name}"
    given = {"strategy": place, "strategy_options": options}
    with pytest.raises(MaskSearchError, match=message):
        search(None, ToyEvaluator(), run=file.parent / "run", trials=1, **given)


SPACE = """
from masksearch import masks
FARTHEST = 9
UNUSED = 3

def reach(trial):
    return trial.suggest_int("reach", 0, FARTHEST)

def space(trial):
    return masks.window(reach(trial))
"""


EDITS = [
    ("", "", ""),  # none
    ("def reach", "# where to look\ndef reach", ""),
    ("def space(trial):\n", 'def space(trial):\n    """Windows."""\n', ""),
    ("UNUSED = 3", "UNUSED = 4", ""),
    ("FARTHEST = 9", "FARTHEST = 8", "FARTHEST"),
    ('"reach", 0', '"reach", 1', "reach"),
    ("masks.window", "masks.causal() | masks.window", "space"),
]


@pytest.mark.slow
def test_an_edit_counts_where_it_changes_what_a_space_does(tmp_path):
    run = tmp_path / "run"
    for old, new, edited in EDITS:
        (tmp_path / "spaces.py").write_text(SPACE.replace(old, new))
        said = rf"\(the space's code was edited: {edited}\)"
        with pytest.raises(ResumeError, match=said) if edited else nullcontext():
            call = load_function(f"{tmp_path / 'spaces.py'}:space")
            search(call, ToyEvaluator(), run=run, trials=1)
    (study,) = studies_in(run)
    assert json.loads(study.facts["space"]).keys() == {"space", "reach", "FARTHEST", "masks"}


@pytest.mark.slow
def test_a_space_that_a_function_makes_is_known_by_what_it_says_or_by_its_code(tmp_path):
    def made(says):
        def space(trial):
            return masks.window(trial.suggest_int("reach", 0, 3))

        if says:
            space.masksearch_source = says
        return space

    for says in ("", "", "4 heads", "4 heads"):
        search(made(says), ToyEvaluator(), run=tmp_path / f"run {says}", trials=1)
    for says, other in (("", "4 heads"), ("4 heads", "8 heads")):
        with pytest.raises(ResumeError, match="space"):
            search(made(other), ToyEvaluator(), run=tmp_path / f"run {says}", trials=1)


@pytest.mark.parametrize(
    "spec", ["masksearch.spaces:distances", "masksearch.spaces.distances:space"]
)
def test_spaces_of_the_package_are_named_as_modules(spec):
    """They are the files of search_spaces/, and so is what a resumed search compares."""
    file = f"{Path(__file__).parents[1] / 'search_spaces' / 'distances.py'}:space"
    space, same = load_function(spec), load_function(file)
    drawn = FixedTrial({"first": 3, "two": True, "second": 5, "hub": False})
    assert space(drawn) == same(drawn) == masks.offsets([0, 3, 5])
    assert definition_hashes(space) == definition_hashes(same)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("masksearch.spaces:distance", "search space 'distance'; did you mean 'distances'"),
        ("masksearch.spaces.distances:spase", "distances.py 'spase'; did you mean 'space'"),
        ("distances", "name it as file.py:function or masksearch.spaces:NAME, got 'distances'"),
        ("{folder}/spaces.py", "{folder}/spaces.py:near, {folder}/spaces.py:far"),
    ],
)
def test_a_name_that_is_none_is_said_with_those_that_are(spec, message, tmp_path):
    (tmp_path / "spaces.py").write_text("def near(trial): ...\n\n\ndef far(trial): ...\n")
    spec, message = (each.format(folder=tmp_path) for each in (spec, message))
    with pytest.raises(MaskSearchError, match=re.escape(message)):
        load_function(spec)


def test_a_space_is_known_by_the_values_that_it_was_made_with():
    def space(trial, far):
        return masks.window(far)

    def bound(far, seen):
        def drawn(trial):
            seen.append(far)
            return masks.window(far)

        return drawn

    for made in (lambda far: partial(space, far=far), lambda far: bound(far, [far])):
        assert definition_hashes(made(3)) == definition_hashes(made(3))
        assert definition_hashes(made(3)) != definition_hashes(made(4))
    seen = [1]
    before = definition_hashes(bound(3, seen))
    seen.append(2)  # lists change while a search goes on
    assert definition_hashes(bound(3, seen)) == before


CODE = """
import json
from masksearch.user_code import definition_hashes

def space(trial):
    drawn = [r for r in range(9) if r in {"a", "b", "c", 3, 1, 2}]
    reach = max(drawn, key=lambda x: -x)

    def inner(x):
        return masks.window(x)
    return inner(reach)

class Space:
    def __call__(self, trial):
        return masks.window(9)

print(json.dumps([definition_hashes(space), definition_hashes(Space())]))
"""


@pytest.mark.slow  # processes that import torch
def test_code_without_source_has_one_hash_in_every_process():
    first, second, third = (
        python("-c", f"exec({CODE!r})", env={"PYTHONHASHSEED": seed}, check=True).stdout
        for seed in "123"
    )
    assert first == second == third


def sourceless(text):
    """The function or class `f` of a text."""
    names: dict = {}
    exec(text, names)
    return names["f"]


@pytest.mark.parametrize("start", ["def f(t):\n", "class f:\n  def __call__(self, t):\n"])
def test_an_edit_of_nested_code_without_source_is_seen(start):
    one = f"{start}    return [g(x, {{1, 'a'}}) for x in t if (lambda y: y > 3)(x)]"
    first = definition_hashes(sourceless(one))
    assert definition_hashes(sourceless(one)) == first
    for old, new in (("> 3", "> 4"), ("g(", "h("), ("'a'", "'b'"), ("1,", "1.0,"), ("y", "z")):
        assert definition_hashes(sourceless(one.replace(old, new))) != first


def test_code_that_cannot_be_known_again_is_refused():
    function = sourceless("def f(t):\n    return 'here'")
    function.__code__ = function.__code__.replace(co_consts=(None, object()))
    with pytest.raises(MaskSearchError, match=r"holds a object, which is .* FILE\.py:NAME"):
        definition_hashes(function)


NEAR = "def reach():\n    return {reach}\n"
JUDGE = """
import statistics
import near
from masksearch import masks
from toy import ToyEvaluator

class Judge(ToyEvaluator):
    def __call__(self, mask, *, seed, workdir):
        assert mask == masks.window(near.reach()), mask
        return super().__call__(mask, seed=seed, workdir=workdir)

def space(trial):
    return masks.window(trial.suggest_int("reach", near.reach(), near.reach()))

def late(trial):
    import later
"""


@pytest.fixture
def folders(tmp_path):
    for reach in (3, 5):
        folder = tmp_path / f"of{reach}"
        folder.mkdir()
        (folder / "near.py").write_text(NEAR.format(reach=reach))
        (folder / f"own{reach}.py").write_text(JUDGE)
        (folder / "statistics.py").write_text("raise RuntimeError('it hides the library')")
        (folder / "later.py").write_text("")
    return tmp_path


def test_a_file_may_import_its_neighbours_and_hides_nothing(folders):
    before = [*sys.path]
    for _ in range(2):  # of two folders each has its own
        drawn = {n: load_function(f"{folders}/of{n}/own{n}.py:space") for n in (3, 5)}
    assert [drawn[reach].__globals__["near"].reach() for reach in (3, 5)] == [3, 5]
    assert drawn[3](FixedTrial({"reach": 3})) == masks.window(3)
    assert sys.path == before
    late = load_function(f"{folders}/of3/own3.py:late")
    said = "No module named 'later'; later is beside that file: import it at the top"
    with pytest.raises(SearchError, match=said):
        search(late, ToyEvaluator(), run=folders / "run", trials=1)


@pytest.mark.slow
def test_workers_get_the_neighbours_of_a_file(folders, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "contracts")
    own = f"{folders}/of3/own3.py"
    judge = load_function(f"{own}:Judge")()
    load_function(f"{folders}/of5/own5.py:space")  # whose neighbour has the same name
    told = {"trials": 1, "strategy": "random", "progress": None, "executor": Local(slots=2)}
    [record] = search(load_function(f"{own}:space"), judge, run=folders / "run", **told).records()
    assert (record.status, record.mask) == ("done", masks.window(3)), record.error
