"""The problem for OptunaHub, by its own loader from a local registry."""

import re
from pathlib import Path

import optuna
import optunahub
import pytest

from masksearch_bench import load

REGISTRY = Path(__file__).parents[2] / "masksearch-bench" / "optunahub"
PLACE = REGISTRY / "benchmarks" / "maskbench"


@pytest.fixture(scope="module")
def module():
    return optunahub.load_local_module("benchmarks/maskbench", registry_root=str(REGISTRY))


def test_a_study_says_what_the_table_says(module):
    problem, table = module.Problem("recall-1", "head/8192"), load("recall-1")
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(directions=problem.directions, sampler=sampler)
    study.optimize(problem, n_trials=20)
    best = {}
    for trial in study.trials:
        choice = "".join(str(trial.params[name]) for name in table.units.names)
        cell = table.query(choice, cost="head/8192")
        assert trial.values == [cell["nll"], cell.share]
        if cell.share <= 0.5:
            best[cell["nll"]] = choice
    wanted = table.regret(best[min(best)], 0.5, "head/8192")
    assert problem.regret(study, 0.5) == wanted
    with pytest.raises(ValueError, match=r"no trial costs at most 0\.001"):
        problem.regret(study, 0.001)


@pytest.mark.nightly
def test_its_example_and_its_readme_run(module, monkeypatch, capsys):
    monkeypatch.setattr(optunahub, "load_module", lambda package: module)
    exec((PLACE / "example.py").read_text("utf-8"), {})
    assert re.findall(r"^(\w+): \d\.\d{3} nats", capsys.readouterr().out, re.M) == [
        "RandomSampler",
        "TPESampler",
    ]
    text = (PLACE / "README.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(code, {})
    assert float(capsys.readouterr().out) >= 0
    for field in ("author", "title", "description", "tags", "optuna_versions", "license"):
        assert re.search(rf"^{field}: \S", text.split("---")[1], re.M)
