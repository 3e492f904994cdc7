"""`masksearch check`: what it says of one's own space, evaluator, strategy and mask; exit code 2
where a search would fail or could not be repeated."""

import pytest
from toy_sentences import write_sentences

import masksearch as ms
from masksearch import masks
from masksearch.masks.measure import effective_density

OWN = """
import random
import masksearch as ms
from masksearch import masks
from masksearch.contracts import Evaluate, Evaluator, Objective, Proposal, Report

def space(trial):
    mask = masks.window(trial.suggest_int("reach", 0, 3))
    return mask | masks.offsets([9]) if trial.suggest_categorical("far", [False, True]) else mask

def wild(trial):
    return masks.window(random.randint(0, 50))

def nothing(trial):
    return None

def some(trial):
    return masks.shifts([-1]) if trial.suggest_int("reach", 0, 3) else masks.window(1)

def mask():
    return masks.bigbird(2, 1, 2)

def told(trial):
    reach = trial.suggest_int("reach", 0, trial.shape.length - 1)
    return masks.per_head([masks.window(reach)] * trial.shape.heads)

class Judge(Evaluator):
    shape = ms.Shape(16, 1, 2)
    objectives = (Objective("loss", "min", 10.0), Objective("sparsity", "max", 0.0))
    protocol = "mine"

    def __call__(self, mask, *, seed, workdir):
        yield Report(3, {"loss": mask.sparsity(16)})

class Scaled(Judge):
    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def __call__(self, mask, *, seed, workdir):
        yield Report(3, {"loss": self.factor})

class Loose(Judge):
    def __call__(self, mask, *, seed, workdir):
        yield Report(3, {"loss": random.random()})

class Misspelt(Judge):
    def __call__(self, mask, *, seed, workdir):
        yield Report(3, {"los": 1.0})

class Strategy:
    def __init__(self):
        self.next = 0

    def ask(self):
        self.next += 1
        mask = masks.window(self.next - 1)  # the first of them keeps the diagonal alone
        return Proposal(self.next - 1, Evaluate(mask), {}, "mine")

    def tell(self, record):
        pass

def three():
    return 3
"""
ANSWERS = {
    "space": (0,
        ["a space: 20 masks in 20 draws; different", "  reach: 0, 1, 2, 3", "search own.py"]),
    "wild": (2, ["of 20 results differ, so that a search could not be repeated"]),
    "nothing": (2, ["0 masks in 20 draws", "fails: the space returned NoneType, not a Mask"]),
    "some": (2,
        ["1, which cost 0.0233 to 0.0233", "  fails: EmptyRowError: layer 0, head 0, row 0"]),
    "mask": (0, ["bigbird()", "empty rows 0"]),
    "Judge": (0,
        ["loss (min), sparsity (max)", "window(2): loss 0.710938 (step 3", "--evaluator own"]),
    "Loose": (2, ["2 of 2 results differ"]),
    "Misspelt": (2, ["fails: full(): EvaluatorError: the last report of Misspelt lacks loss"]),
    "Strategy": (0,
        ["4 proposals", "  #0: window(0)", "  #3: window(3)", "--strategy own.py:Strategy"]),
    "three": (2, ["error: int does not inherit masksearch.contracts.Evaluator"]),
    "missing": (2, ["unknown function or class in own.py 'missing'"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.slow
def test_what_is_said_of_own_code(command, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    code, out, err = command.run("check", f"own.py:{name}")
    expected, texts = ANSWERS[name]
    assert code == expected, err
    assert all(text in out + err for text in texts), out + err
    assert [each.name for each in tmp_path.iterdir() if each.suffix] == ["own.py"]


@pytest.mark.slow
def test_a_space_costs_what_it_costs_on_the_data_of_an_evaluator(command, monkeypatch, tmp_path):
    monkeypatch.chdir(write_sentences(tmp_path))
    (tmp_path / "own.py").write_text(OWN)
    data = ("--weights", "checkpoint", "--glue", "glue", "--tasks", "SST-2")
    out, _ = command("check", "own.py:told", *data, "--length", 32)
    shape = ms.GlueEvaluator(weights="checkpoint", glue="glue", tasks=("SST-2",), length=32).shape
    [line] = [line for line in out.splitlines() if line.startswith("  reach: ")]
    reaches = [int(reach) for reach in line.removeprefix("  reach: ").split(", ")]
    assert max(reaches) > 16
    costs = [effective_density(masks.window(reach), shape) for reach in reaches]
    low, high = min(costs), max(costs)
    assert f"which cost {low:.3g} to {high:.3g} of dense attention at the lengths of" in out
    assert low > 1.2 * masks.window(min(reaches)).density(32)  # no row is as long
    err = command.refused("check", "own.py:space", *data, "--length", 64)
    assert "use a length of at most 48" in err


@pytest.mark.slow
def test_what_options_of_an_evaluator_go_with(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    code, out, _ = command.run("check", "own.py:Scaled", "--set", "factor=2.5")
    assert (code, "window(2): loss 2.5 (step 3" in out) == (0, True)
    for name, said in (("Scaled", "--steps belongs to the built-in"), ("Strategy", "takes none")):
        assert said in command.refused("check", f"own.py:{name}", "--steps", 3)
