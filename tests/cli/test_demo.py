"""The demonstration end to end at a toy size, and its words."""

import json

import pytest
from transformers import LlamaForCausalLM

import masksearch as ms
from masksearch import masks
from masksearch.cli.demo import run_demo, write_data
from masksearch.errors import DataError
from masksearch.tasks.glue import load_glue
from masksearch.tasks.planted.graded import GradedProcess

PROCESS = GradedProcess()
TOY = {
    "evaluator": ms.PlantedEvaluator.graded(steps=4, held_out_sequences=32, gate_batch=4),
    "trials": 2,
    "seeds": (0, 1),
    "dam": {
        "gates": {"heads": 1},
        "config": {"steps": 12, "density": 0.2, "dense_warmup": 0.5},
        "densities": (0.05, 0.1, 0.2),
    },
}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")
def test_demo_ends_in_a_report_and_resumes(tmp_path, capsys):
    page, lines = run_demo(tmp_path / "run", slots=1, **TOY)
    html = page.read_text(encoding="utf-8")
    for name in ("dense", "oracle", "strided", "longformer", "true front"):
        assert name in html
    assert html.index("The task: 21 tokens") < html.index("masks cover")
    assert "No comparison over seeds is included" not in html
    assert sum(": 3 searches of " in line for line in lines) == 4
    assert "http://" not in html.replace("http://www.w3.org", "")
    result = json.loads((page.parent / "result.json").read_text(encoding="utf-8"))
    final, searched = result["sections"]
    assert final["comparisons"][0]["points"]
    assert searched["points"]
    for name in ("compared", "front"):
        (figure,) = (page.parent / "figures").glob(f"*_{name}.svg")
        assert ">true front</text>" in figure.read_text("utf-8")
    capsys.readouterr()
    run_demo(tmp_path / "run", slots=1, **TOY)
    assert "done" not in capsys.readouterr().err  # nothing ran again


@pytest.mark.slow
def test_data_are_written_twice_alike(tmp_path, capsys):
    lines = write_data(tmp_path / "data", steps=2)
    assert capsys.readouterr().err.startswith("demo: small models train for 2 steps each\n")
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "data" / name) for name in ("text", "glue", "bert", "llama")
    ]
    write_data(tmp_path / "again", steps=2)
    for path in (path for path in (tmp_path / "data").rglob("*") if path.is_file()):
        again = tmp_path / "again" / path.relative_to(tmp_path / "data")
        assert path.read_bytes() == again.read_bytes(), path
    with pytest.raises(DataError, match="text exists, and --data replaces nothing: name another"):
        write_data(tmp_path / "data")


@pytest.mark.slow
def test_labels_of_the_data_follow_from_the_text(tmp_path):
    """The right word for each of the first eight is learned from the text, not from the code."""
    write_data(tmp_path, steps=2)
    right: dict[str, str] = {}
    for path in (tmp_path / "text").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert {*lines[::21]} == {"= text ="}
        for words in (line.split() for line in lines if line != "= text ="):
            assert len(words) == 17
            for one, other in zip(words[:8], words[9:], strict=True):
                assert right.setdefault(one, other) == other
    assert len(right) == len(set(right.values())) == 32
    for task in ("SST-2", "MRPC"):
        data = load_glue(tmp_path / "glue", task)
        assert (len(data.train), len(data.dev[task])) == (2_000, 400)
        for rows in (data.train, data.dev[task]):
            assert 0.45 < sum(rows.labels) / len(rows) < 0.55
            for texts, label in zip(rows.texts, rows.labels, strict=True):
                words = [text.split() for text in texts]
                first, second = words if task == "MRPC" else (words[0][:8], words[0][9:])
                holds = [right[one] == other for one, other in zip(first, second, strict=True)]
                assert holds == [bool(label)] * 8
    model = ms.attach(LlamaForCausalLM.from_pretrained(tmp_path / "llama"), masks.window(2))
    assert ms.explain(model, 512).rows
