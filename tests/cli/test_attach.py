"""`masksearch attach`: what it prints and writes, and one line for mistakes."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import tiny_checkpoint, tiny_embedding
from toy import ToyEvaluator
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification, pipeline

import masksearch as ms
from masksearch import (
    Comparison,
    attach,
    attached,
    compare,
    load_pretrained,
    masks,
    open_study,
    save_mask,
    save_pretrained,
    search,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("bert") / "model", ["mask", "star"])


@pytest.fixture
def run(command):
    """What the command says."""
    return lambda *words: "".join(command("attach", *words))


def test_model_and_mask_are_written_and_explained(folder, tmp_path, run):
    said = run(folder, "window(2) | global_tokens(1)", "--length", 40, "--out", tmp_path / "out")
    opened = f"ms.load_pretrained({str(tmp_path / 'out')!r})"
    assert f"open it: {opened}; transformers alone refuses it" in said
    assert f"print(*ms.measure_speed({opened}, length=48))" in said  # of the model's positions
    assert "0-1" in said
    assert "sdpa" in said
    assert str(tmp_path / "out") in said
    loaded = load_pretrained(tmp_path / "out")
    mask = masks.window(2) | masks.global_tokens(1)
    assert attached(loaded) == {"self": mask}
    tokens = {"input_ids": torch.arange(7)[None]}
    alone = attach(BertForMaskedLM.from_pretrained(folder).eval(), mask)
    assert torch.equal(loaded(**tokens).logits, alone(**tokens).logits)


def test_without_out_nothing_is_written(folder, run):
    files = sorted(folder.iterdir())
    assert "flex" in run(folder, "star", "--backend", "flex", "--length", 48)
    assert sorted(folder.iterdir()) == files


def test_a_table_is_explained_at_its_own_length(folder, tmp_path, run):
    layers = [masks.window(1), masks.window(2)]
    path = save_mask(masks.table(masks.per_layer(layers).dense(16, 2, 2)), tmp_path / "mask.json")
    said = run(folder, path, "--out", tmp_path / "out")
    assert "  16  " in said
    command = re.search(r"time it here: (print\(.*?, length=\d+\)\))", said)
    assert command[1].endswith("length=16))")  # of the table's
    exec(command[1], {"ms": ms})
    assert said.count("nothing sparse pays") <= 2  # once of the rows, once of their masks
    assert "weights:" not in said  # which are told where a run has judged others


@pytest.mark.slow
def test_a_pipeline_cuts_at_the_length_of_the_mask_and_pads_right(folder, tmp_path, run):
    source, out = tmp_path / "classifier", tmp_path / "out"
    torch.manual_seed(0)
    BertForSequenceClassification.from_pretrained(folder).save_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side, tokenizer.model_max_length = "left", 512
    tokenizer([["mask", "star"]] * 2, truncation=True, max_length=30, padding="max_length")
    tokenizer.save_pretrained(source)  # those are in its tokenizer.json
    assert json.loads((source / "tokenizer.json").read_text())["truncation"]["max_length"] == 30
    table = torch.rand(19, 19, generator=torch.Generator().manual_seed(0)) < 0.4
    mask = masks.table(table) | masks.window(0)
    run(source, save_mask(mask, tmp_path / "mask.json"), "--out", out)
    model, ours = load_pretrained(out), AutoTokenizer.from_pretrained(out)
    classify = pipeline("text-classification", model=model, tokenizer=str(out), top_k=None)
    texts = ["mask star " * 40, "star mask star"]
    for text, found in zip(texts, classify(texts, truncation=True, batch_size=2), strict=True):
        ids = ours(text, truncation=True)["input_ids"]
        assert ids == tokenizer(text, truncation=True, max_length=19)["input_ids"]
        with torch.no_grad():
            alone = model(torch.tensor([ids])).logits[0].softmax(0)
        by_label = {each["label"]: each["score"] for each in found}
        labels = [by_label[f"LABEL_{number}"] for number in range(2)]
        assert labels == pytest.approx(alone.tolist(), abs=1e-6)


@pytest.mark.slow
def test_an_embedding_model_stays_one(tmp_path, run):
    library = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    tiny_embedding(tmp_path / "embedder", ["mask", "star"])
    out = run(tmp_path / "embedder", "window(2)", "--out", tmp_path / "masked", "--length", 16)
    assert "SentenceTransformer" in out
    model = load_pretrained(tmp_path / "masked")
    assert type(model) is library.SentenceTransformer
    assert attached(model) == {"self": masks.window(2)}


@pytest.mark.slow
def test_a_reranker_is_a_classifier_which_keeps_its_head(tmp_path, run):
    library = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    start, out = tiny_checkpoint(tmp_path / "start", ["mask", "star"]), tmp_path / "out"
    reranker = library.CrossEncoder(str(start), num_labels=1, device="cpu")
    torch.manual_seed(0)
    for weight in reranker.model.parameters():
        torch.nn.init.normal_(weight, std=0.4)  # wide enough that a mask matters
    reranker.save_pretrained(str(tmp_path / "reranker"))
    assert "BertForSequenceClassification" in run(
        tmp_path / "reranker", "window(1)", "--length", 16, "--out", out
    )
    pairs = [["mask star mask", "star"], ["star", "star star"], ["mask", "mask star star mask"]]
    dense = reranker.predict(pairs)
    attach(reranker.model, masks.window(1))
    wanted = reranker.predict(pairs)
    assert abs(wanted - dense).max() > 0.01
    model = load_pretrained(out)
    assert type(model) is BertForSequenceClassification
    classify = pipeline("text-classification", model=model, tokenizer=str(out))
    texts = [{"text": one, "text_pair": two} for one, two in pairs]
    scores = [each["score"] for each in classify(texts, function_to_apply="sigmoid")]
    assert scores == pytest.approx(wanted.tolist(), abs=1e-6)
    again = library.CrossEncoder(str(tmp_path / "reranker"), device="cpu")
    again[0].model = model  # as docs/trained_encoders.md says
    assert (again.predict(pairs) == wanted).all()


@pytest.mark.slow
def test_other_models_of_that_library_are_refused(tmp_path, command):
    library = pytest.importorskip("sentence_transformers", reason="the extra `embed`")
    start = tiny_checkpoint(tmp_path / "start", ["mask", "star"])
    library.SparseEncoder(str(start), device="cpu").save_pretrained(str(tmp_path / "sparse"))
    named = f"a SparseEncoder of Transformer, SpladePooling; open {tmp_path / 'sparse'} by its own"
    assert named in command.refused("attach", tmp_path / "sparse", "star()", "--out", "never")
    (tmp_path / "texts.txt").write_text("mask star\n")
    texts = ["--data", tmp_path / "texts.txt"]
    for words in (["compare", "star()", "--weights"], ["sparsify", "--out", "never"]):
        assert named in command.refused(*words, tmp_path / "sparse", *texts)


@pytest.mark.parametrize("leaf", [masks.special_tokens(2, 3), masks.same_token([2])], ids=str)
def test_content_masks_and_files(folder, tmp_path, run, leaf):
    said = run(folder, f"window(1) | {leaf}", "--out", tmp_path / "out")
    assert str(leaf) in said
    content = masks.window(1) | leaf
    assert attached(load_pretrained(tmp_path / "out")) == {"self": content}
    path = save_mask(content, tmp_path / "content.json")
    assert str(leaf) in run(folder, path)


@pytest.mark.slow
def test_a_saved_encoder_without_a_pooler_takes_another_mask(folder, tmp_path, run):
    model = BertForMaskedLM.from_pretrained(folder).bert
    assert model.pooler is None
    save_pretrained(attach(model, masks.window(1)), tmp_path / "model")
    run(tmp_path / "model", "window(2)", "--out", tmp_path / "out")
    found = load_pretrained(tmp_path / "out")
    assert found.pooler is None
    assert attached(found) == {"self": masks.window(2)}


def test_missing_weights_are_refused(folder, tmp_path, command):
    weights = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.attention.self.query.weight"
    copied = shutil.copytree(folder, tmp_path / "model")
    kept = {name: tensor for name, tensor in weights.items() if name != lost}
    save_file(kept, copied / "model.safetensors", metadata={"format": "pt"})
    said = f"do not fit BertForMaskedLM in 1 tensors, such as {lost}"
    assert said in command.refused("attach", copied, "star")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere/", "star"), "no such folder"),
        (("window(4)", "MODEL"), "MODEL comes first, then MASK: masksearch attach "),
        (("window(4)", "star"), "MODEL comes first, then MASK: masksearch attach "),
        (("MODEL", "sta"), "unknown mask 'sta'; did you mean 'star'"),
        (("MODEL", "nothing.json"), "nothing.json: no such mask file"),
        (("MODEL", "star", "--backend", "gathr"), "unknown backend 'gathr'"),
        (("MODEL", "star", "--length", "0"), "length must be at least 1 position, got 0"),
        (
            ("MODEL", "star", "--time", "--length", "49"),
            "asked for 49; use a length of at most",
        ),
        (("MODEL", "per_head([star, full, star])"), "has 2 layers of 2 heads"),
    ],
)
def test_mistakes_are_one_line(folder, command, arguments, message):
    given = [str(folder) if argument == "MODEL" else argument for argument in arguments]
    assert message in command.refused("attach", *given)


@pytest.mark.slow
def test_the_whole_model_is_timed_at_each_length(folder, command, tmp_path):
    lengths = ("--length", 16, "--length", 24)
    given = ("attach", folder, "star", "--time", *lengths, "--out", tmp_path / "out")
    out, err = command(*given)
    assert all(f"forward pass at {length} tokens: " in out for length in (16, 24))
    assert "tokens: about " in err
    out, err = command(*given, "--json")
    found = json.loads(out)  # nothing else stands there
    assert [row["length"] for row in found["speeds"]] == [16, 24]
    assert [each["rows"][0]["backend"] for each in found["kernels"]] == ["sdpa", "sdpa"]
    assert str(tmp_path / "out") in err
    code, out, _ = command.run(*given[:3], *lengths, "--json")
    assert (code, json.loads(out)) == (0, found | {"speeds": []})


def test_a_comparison_recommends_within_a_budget_and_says_why(folder, tmp_path, run, command):
    found = {"mine": masks.window(2), "star": masks.star()}
    compared = tmp_path / "compared"
    toy = ToyEvaluator()
    compare(found, toy, run=compared, seeds=range(3), kinds={"mine": "searched"}, progress=None)
    advice = Comparison.open(compared).recommend(0.4)
    said = run(folder, compared, "--budget", 0.4, "--out", tmp_path / "out")
    assert str(advice) in said
    assert attached(load_pretrained(tmp_path / "out")) == {"self": advice.mask}
    assert "within that budget" in command.refused("attach", folder, compared, "--budget", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("baselines", "says"), [({}, False), ({"star": masks.star()}, True)])
def test_a_mask_of_a_run_says_whether_a_hand_designed_one_was_evaluated(
    folder, tmp_path, run, baselines, says
):
    def space(trial):
        return masks.window(trial.suggest_int("reach", 2, 2))

    run_folder = tmp_path / "search"
    toy = ToyEvaluator()
    settings = {"run": run_folder, "trials": 1, "strategy": "random", "progress": None}
    search(space, toy, baselines=baselines, **settings)
    said = run(folder, run_folder, "--out", tmp_path / "out")
    missing = "no hand-designed mask of the same cost was evaluated"
    assert (missing in said) != says
    assert ("are in that run, too" in said) == says
    first = open_study(run_folder).report("report.html").with_name("result.json")
    verdicts = json.loads(first.read_text("utf-8"))["sections"][0]["verdicts"]
    assert any(missing in line for line in verdicts) != says
