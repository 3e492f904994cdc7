"""The Python and the commands of guides run in their order, on toys and with fewer steps."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from cli_runs import run as run_program
from pages import FENCE, blocks, read
from split_evaluators import embedding
from tiny_decoder import tiny_decoder, written_text
from toy import ToyEvaluator
from toy_sentences import write_sentences
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import masksearch as ms
from masksearch import masks
from masksearch.models.checkpoints import verify
from masksearch_bench import load
from masksearch_bench.__main__ import main as bench
from masksearch_decoders import MaskedCache


def lines(code: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def ran(code: str, page: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """What code of a page defines, beside names that are there already."""
    names = {} if names is None else names
    exec(compile(code, f"docs/{page}", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


# -- guide_space, search, comparing, running, plain_pytorch --------------------------------------
[SPACE] = [code for code in blocks(read("guide_space.md"), "python") if "def judge" in code]


def test_home_and_guides_tell_the_same_story():
    home = read("index.md")
    assert [code for code in blocks(home, "python") if "def judge" in code] == [SPACE]
    [commands] = blocks(home, "bash")
    firsts = [blocks(read(page), "bash")[0] for page in ("search.md", "comparing.md")]
    assert lines(commands) == lines("".join(firsts))


@pytest.mark.nightly
def test_the_story_runs(command, folder):
    Path("my_space.py").write_text(SPACE.replace("steps=240", "steps=12"))
    for page, count in (("search.md", 2), ("comparing.md", 1)):
        for line in lines("\n".join(blocks(read(page), "bash")[:count])):
            line = line.replace("--slots 2", "--slots 1").replace("--trials 24", "--trials 17")
            command(*shlex.split(line, comments=True)[1:])
    assert (folder / "runs" / "compared" / "report.html").is_file()
    assert (folder / "mask.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(budget|drew a mask)")
def test_a_space_keeps_budgets_by_one_line(tmp_path):
    names: dict[str, Any] = {}
    for code in blocks(read("guide_space.md"), "python"):
        if "import masksearch" in code or "def heads" in code:
            ran(code, "guide_space.md", names)

    class Judge(ToyEvaluator):
        shape = ms.Shape(24, 2, 4)

    refused = {}
    for name in ("heads", "heads_within"):
        told = {"trials": 4, "strategy": "random", "budget": 0.3, "baselines": {}}
        study = ms.search(names[name], Judge(), run=tmp_path / name, progress=None, **told)
        refused[name] = sum(record.refused for record in study.records())
    assert refused["heads"] > 3 > refused["heads_within"] == 0


@pytest.mark.slow
def test_trackers_take_each_finished_trial_with_its_curve(monkeypatch, tmp_path):
    [code] = [code for code in blocks(read("running.md"), "python") if "def to_mlflow" in code]
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    monkeypatch.chdir(tmp_path)
    mlflow, wandb = MagicMock(), MagicMock()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    names = ran(code, "running.md")
    study = ms.search(
        lambda trial: masks.window(trial.suggest_int("reach", 0, 9)),
        ToyEvaluator(),
        **{"trials": 2, "strategy": "random", "run": tmp_path, "progress": None},
        baselines={},
        listeners=[names[f"to_{each}"] for each in ("tensorboard", "mlflow", "wandb")],
    )
    titles = [f"trial {record.number}" for record in study.records()]
    assert [each.kwargs["run_name"] for each in mlflow.start_run.call_args_list] == titles
    assert [each.kwargs["name"] for each in wandb.init.call_args_list] == titles
    for record in study.records():
        for report in record.curve:
            mlflow.log_metrics.assert_any_call(dict(report.values), step=report.step)
            wandb.init().log.assert_any_call(dict(report.values), step=report.step)
        shown = reader.EventAccumulator(f"tensorboard/{record.number}").Reload()
        curve = [(event.step, pytest.approx(event.value)) for event in shown.Scalars("loss")]
        assert [(report.step, report.values["loss"]) for report in record.curve] == curve
        [final] = shown.Scalars("final/sparsity")
        assert final.value == pytest.approx(record.measures["sparsity"])
        content = shown.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = plugin.HParamsPluginData.FromString(content).session_start_info
        assert start.hparams["reach"].number_value == record.params["reach"]


@pytest.mark.nightly
def test_a_plain_model_learns_and_takes_a_mask():
    page = "plain_pytorch.md"
    with torch.random.fork_rng():
        ran("\n".join(blocks(read(page), "python")), page, {"__name__": "plain"})


# -- decoder -------------------------------------------------------------------------------------
SMALL_GENERATION = {
    "data/llama": "my-llama",
    "w05 w21 w13 w02": "w0 w2 w1 w7",
    "500": "20",
    "504": "24",
    "window(16)": "window(3)",
}
SMALL_DECODER = {"1024": "24", "window(127)": "window(3)", "budget=0.4": "budget=0.5"}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:the strategy has no more masks")
def test_a_decoder_is_loaded_searched_checked_exported_and_served(folder, capsys):
    words = ["Once", "upon", "a", "time", *(f"w{number}" for number in range(8)), "="]
    narrow = {"num_hidden_layers": 3, "initializer_range": 0.05}
    tiny_decoder(folder / "my-llama", words, **narrow)
    written_text(folder / "my-llama", folder / "books", words)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file="my-llama/tokenizer.json")
    tokenizer.save_pretrained("my-llama")
    code, generation = blocks(read("decoder.md"), "python")
    assert len(lines(code)) <= 30
    for said, small in SMALL_DECODER.items():
        assert said in code
        code = code.replace(said, small)
    found = ran(code, "decoder.md")
    shown = capsys.readouterr().out
    assert "'documents': " in shown
    assert "Once upon a time" in shown
    native = AutoModelForCausalLM.from_pretrained("runs/native")
    assert native.config.layer_types.count("full_attention") <= 1  # of three, within the budget
    assert native.config.sliding_window == found["plan"].levels[0].reach + 1
    inputs, masked = found["inputs"], found["model"]
    tokens = [
        native.generate(**inputs, max_new_tokens=20)[0],
        masked.generate(**inputs, max_new_tokens=20, past_key_values=MaskedCache(masked))[0],
    ]
    assert tokens[0].tolist() == tokens[1].tolist()
    for said, small in SMALL_GENERATION.items():
        assert said in generation
        generation = generation.replace(said, small)
    ran(generation, "decoder.md")
    dense, masked = re.findall(r"tokens a second, ([\d,]+) bytes: w0", capsys.readouterr().out)
    assert int(dense.replace(",", "")) > 2 * int(masked.replace(",", ""))


# -- trained_encoders and adapting ---------------------------------------------------------------
SMALL = {  # what the page says -> what a toy takes
    "MODEL": "checkpoint",
    "GLUE": "glue",
    "STS-B,QQP": "SST-2,RTE",
    "STS-B": "SST-2",
    "--length 64": "--length 32 --set finetune_batch=8 --set device=cpu --set finetune_lr=3e-3",
    "--set epochs=1": "--set epochs=2",
    "--set epochs=3": "--set epochs=4",
    "--adapt recover": "--adapt recover --set recover_steps=3",
    "dam.steps=150": "dam.steps=20",
    "dam.gate_lr=0.1": "dam.gate_lr=.3",
    "dam.density=0.3": "dam.density=0.5",
    "--trials 40": "--trials 3",
    "--budget 0.2 --budget 0.3": "--budget 0.6 --budget 0.8",
    "--seeds 5": "--seeds 3",
    "--seeds 3": "--seeds 2",
}


EMBEDDING = {
    "MODEL": "embedder",
    "GLUE/STS-B": "texts",
    "sentence1": "one",
    "sentence2": "two",
    "--length 64": "--length 16 --set device=cpu",
    "--budget 0.2": "--budget 0.6",
    "dam.steps=150": "dam.steps=10",
}


def small_commands(page: str, block: int = 0, small: dict[str, str] = SMALL) -> list[list[str]]:
    """Words of the commands in a block of a page, made small, without the program's name."""
    text = re.sub(
        "|".join(map(re.escape, small)),
        lambda found: small[found[0]],
        blocks(read(page), "bash")[block],
    )
    named = dict(re.findall(r'^(\w+)="(.*)"', text, re.M))
    commands = [line for line in text.splitlines() if line.startswith("masksearch ")]
    for name, words in named.items():
        quoted = shlex.join(words.split())
        commands = [line.replace(f"${name}", quoted) for line in commands]
    return [shlex.split(line)[1:] for line in commands]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_three_searches_a_comparison_and_its_verdict(folder, command):
    write_sentences(folder)
    *searches, compare, verdict = small_commands("trained_encoders.md")
    fronts = [command(*words)[0] for words in searches]
    assert ["Front of" in shown for shown in fronts] == [True] * 3
    models = len(list((folder / "cache" / "dense").glob("*.safetensors")))
    assert models == 2  # one for each task, shared by the searches
    compared = command(*compare)[0]
    assert len(list((folder / "cache" / "dense").glob("*.safetensors"))) == 2 + 2 * 3
    comparison = ms.Comparison.open(folder / "runs" / "compared")
    best = {f"{name} within {budget}" for name in ("tpe", "random") for budget in (0.6, 0.8)}
    assert best <= set(comparison.entries)
    assert any(name.startswith("front #") for name in comparison.entries)
    assert "Holm" in compared
    assert "Holm" in command(*verdict)[0]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_an_embedding_model_is_searched_compared_and_saved(folder, command):
    library = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    embedding(folder)
    for words in small_commands("trained_encoders.md", 1, EMBEDDING):
        command(*words)
    assert ms.Comparison.open(folder / "runs" / "embed-compared").seedless
    model = ms.load_pretrained(folder / "masked-embedder")
    assert type(model) is library.SentenceTransformer
    assert len(model.encode(["bis", "bis bat"])) == 2


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_the_card_of_the_cheap_settings(folder, command):
    write_sentences(folder)
    *compared, card = small_commands("adapting.md", -1)
    for words in compared:
        command(*words)
    shown = command(*card)[0]
    for setting in ("runs/none", "runs/recover", "runs/short"):
        assert setting in shown
    assert "a setting of its own" in shown


# -- trainers ------------------------------------------------------------------------------------
TRAINERS, LM_EVAL = (blocks(part, "python") for part in read("trainers.md").split("## lm-eval"))


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Iterator[dict[str, Any]]:
    pytest.importorskip("peft")
    pytest.importorskip("accelerate")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng(devices=[]):
        patched.chdir(tmp_path_factory.mktemp("trainers"))
        torch.manual_seed(0)
        for code in TRAINERS:
            ran(code, "trainers.md", names)
        yield names


@pytest.mark.nightly
def test_trainers_keep_the_mask(session):
    for folder in ("accelerated", "adapted/checkpoint-2", "compiled"):
        assert verify(folder) == {"self": session["mask"]}


@pytest.mark.nightly
def test_lm_eval_scores_the_model_with_its_mask(session):
    pytest.importorskip("lm_eval", reason="the extra `lmeval`")
    for code in LM_EVAL:
        ran(code, "trainers.md", session)
    model, tokenizer, scores = session["model"], session["tokenizer"], {}
    for name in ("masked", "dense"):
        if name == "dense":
            ms.detach(model)
            session["found"] = session["lm_eval"].simple_evaluate(
                session["wrapped"],
                tasks=["endings"],
                task_manager=session["tasks"],
                bootstrap_iters=0,
            )
        samples = session["found"]["samples"]["endings"]
        assert len(samples) == 2
        for sample in samples:
            own = []
            for ending in ("mat", "road"):
                ids = tokenizer(f"{sample['doc']['text']} {ending}", return_tensors="pt")
                with torch.no_grad():
                    chances = model(ids["input_ids"]).logits[0, -2].log_softmax(-1)
                own.append(float(chances[ids["input_ids"][0, -1]]))
            theirs = [float(chance) for chance, _ in sample["filtered_resps"]]
            assert theirs == pytest.approx(own, abs=1e-5)
            scores[name, sample["doc_id"]] = own
    apart = [abs(scores["masked", i][0] - scores["dense", i][0]) for i in range(2)]
    assert max(apart) > 1e-3  # else the check says nothing of the mask


# -- maskbench -----------------------------------------------------------------------------------
MASKBENCH = read("maskbench.md")
TABLES = blocks(MASKBENCH, "python")


@pytest.fixture
def run_bench(monkeypatch, capsys, folder):
    """Runs a line of masksearch-bench; what it prints."""

    def run_line(line: str) -> str:
        code, out, err = run_program(monkeypatch, capsys, *shlex.split(line)[1:], program=bench)
        assert code == 0, err
        return out

    return run_line


@pytest.mark.slow
def test_a_table_answers_and_is_searched(folder):
    found = ran(TABLES[0], "maskbench.md")
    best = found["table"].optimum(0.4).choice
    assert found["table"].regret(best, 0.4) == 0
    few = TABLES[1].replace("range(5), trials=40", "[0], trials=4")
    ran(few.replace("trials=40", "trials=4"), "maskbench.md", found)
    assert len(found["study"].records()) >= 4
    assert 1 <= len(found["rows"]) <= 4


def test_a_selector_is_judged(run_bench):
    Path("mine.py").write_text(TABLES[2])
    judge, *_ = re.findall(r"^masksearch-bench .*mine\.py.*$", MASKBENCH, re.M)
    printed = run_bench(judge)
    mine = "000000000011"  # a third head costs more than 40 % of the pairs
    assert f"{load('recall-1').regret(mine, 0.4):.4f}" in printed


@pytest.mark.nightly
def test_a_table_is_built(run_bench, folder):
    words = ["=", *"abcdefgh"]
    wide = {"max_position_embeddings": 512, "initializer_range": 0.05}
    tiny_decoder(folder / "my_decoder", words, **wide)
    written_text(folder / "my_decoder", folder / "text", words, length=400)
    shutil.copy(folder / "text" / "valid.txt", folder / "text" / "test.txt")
    Path("mine.py").write_text(TABLES[3].replace("text.txt", "text"))
    [build] = re.findall(r"`(masksearch-bench build .*?)`", MASKBENCH)
    run_bench(build)
    table = load("tables/mine-0.parquet")
    assert table.complete
    assert len(table) == 4


# -- write_your_own: a section at a time ---------------------------------------------------------
YOUR_OWN = read("write_your_own.md")
FILES = {
    code.split("\n", 1)[0].removeprefix("# "): code
    for code in blocks(YOUR_OWN, "python")
    if re.match(r"# \w+\.py\n", code)
}
SECTIONS = {
    part.split("\n", 1)[0]: found
    for part in re.split(r"^## ", YOUR_OWN, flags=re.M)
    if (found := FENCE.findall(part))
}


@pytest.fixture
def files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's files, importable; what they define is forgotten afterwards."""
    for name, body in FILES.items():
        (folder / name).write_text(body, encoding="utf-8")
    kinds = dict(ms.Mask.kinds)
    monkeypatch.syspath_prepend(str(folder))
    yield
    ms.Mask.kinds.clear()
    ms.Mask.kinds.update(kinds)
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_page_has_a_file_for_each_part():
    assert len(FILES) == len(SECTIONS) == 9


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:DAM")  # four steps prune nothing
@pytest.mark.parametrize("heading", SECTIONS)
def test_a_part_of_ones_own_runs(heading, files, command, capsys):
    names, printed = {"ms": ms, "masks": masks}, ""
    for kind, body in SECTIONS[heading]:
        if kind == "text":
            assert body in printed
        elif kind == "bash":
            for line in lines(body):
                command(*shlex.split(line)[1:])
        elif body not in FILES.values():
            ran(body, "write_your_own.md", names)
            printed = capsys.readouterr().out
