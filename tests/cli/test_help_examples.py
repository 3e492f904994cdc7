"""The examples of every `--help`: run here, run by another test, or not run, with the reason."""

import shlex

import pytest

from tests.parsed import every_command

HERE = (  # as they stand, in an empty folder
    'masksearch export "longformer(16, 2)" --out layout.npy --block 16 --length 128',
    'masksearch report "bigbird(2,1,2) | window(3)" --length 48',
    "masksearch doctor",
)
SLOW = "test_help.py runs it, or the same command with other options, as slow tests"
MINUTES = "takes minutes of training; the options are parsed by test_help.py"
FOLDERS = "names folders of the user's own; the options are parsed by test_help.py"
ELSEWHERE = {
    "masksearch demo": MINUTES,
    "masksearch doctor glue/ wikitext-2/": FOLDERS,
    "masksearch check": "test_check.py runs it on files of its own",
    "masksearch search": MINUTES,
    "masksearch status": SLOW,
    "masksearch resume": SLOW,
    'masksearch export "runs/search#7"': FOLDERS,
    "masksearch compare runs/search": MINUTES,
    "masksearch compare --front": MINUTES,
    "masksearch compare star": SLOW,
    "masksearch report runs/search": SLOW,
    "masksearch report runs/a": FOLDERS,
    "masksearch report runs/compare": FOLDERS,
    "masksearch proxy-card": FOLDERS,
    "masksearch attach my-llama/": FOLDERS,
    "masksearch attach my-bert/": FOLDERS,
    "masksearch sparsify": FOLDERS,
    "masksearch allocate": FOLDERS,
    "masksearch pretrain": SLOW,
}


def examples() -> list[str]:
    """Those of all commands, each on one line."""
    helps = [each.help.partition("Examples:\n")[2] for each in commands().values()]
    text = "\n".join(helps).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def commands():
    return every_command()


def test_every_example_is_run_or_says_why_not():
    listed = examples()
    assert set(HERE) <= set(listed)
    for example in {*listed} - {*HERE}:
        assert any(example.startswith(start) for start in ELSEWHERE), example
    for start in ELSEWHERE:
        assert any(example.startswith(start) for example in {*listed} - {*HERE}), start


@pytest.mark.slow
@pytest.mark.parametrize("example", HERE)
def test_examples_that_need_nothing_run(example, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    out, _ = command(*shlex.split(example)[1:])
    assert out


def test_the_engine_of_the_example_of_allocate_leaves_room_for_its_budget():
    """The floor of llama.cpp at the printed settings, on any Llama."""
    import json

    from transformers import LlamaConfig

    import masksearch as ms
    from masksearch import masks

    [example] = [each for each in examples() if "allocate" in each and "--serving" in each]
    words = shlex.split(example)
    told = {name: words[words.index(f"--{name}") + 1] for name in ("budget", "length", "serving")}
    serving = json.loads(told["serving"])
    local = masks.window(int(told["length"]) // 8 - 1)
    held = ms.kv_bytes(
        local,
        LlamaConfig(num_hidden_layers=4),
        serving["length"],
        cache_layout="llama.cpp",
        ubatch=serving["ubatch"],
    )
    assert held.share <= float(told["budget"])
