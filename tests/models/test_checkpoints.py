"""Checkpoints saved to a folder and opened again, against the Hugging Face models themselves."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from huggingface_hub import constants, snapshot_download
from real_data import minilm
from tiny_encoders import same, sizes, tokens, weights

import masksearch as ms
from masksearch import attach, masks
from masksearch.contracts import Shape
from masksearch.errors import AttachError, DataError, LengthError
from masksearch.models.encoders import MaskedLanguageModel, SequenceClassifier
from masksearch.models.pretrained import open_pretrained

FILES = "masksearch.models.checkpoints"
BERT = sizes(40, 32, 2, 4, 64, 20, initializer_range=0.2)
NARROW = BERT | {"embedding_size": 16}
MODERN = BERT | {f"{name}_token_id": None for name in ("pad", "bos", "eos", "cls", "sep")}
SAVED = {  # name -> class, configuration, layers with weights of their own, positions
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**BERT), 2, 20),
    "bert, both heads": (hf.BertForPreTraining, hf.BertConfig(**BERT), 2, 20),
    "bert, relu": (hf.BertForMaskedLM, hf.BertConfig(**BERT, hidden_act="relu"), 2, 20),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig(**BERT, type_vocab_size=1), 2, 18),
    "distilbert": (hf.DistilBertForMaskedLM, hf.DistilBertConfig(**BERT, hidden_dim=64), 2, 20),
    "electra": (hf.ElectraForMaskedLM, hf.ElectraConfig(**NARROW), 2, 20),
    "albert": (hf.AlbertForMaskedLM, hf.AlbertConfig(**NARROW), 1, 20),
    "deberta": (hf.DebertaV2ForMaskedLM, hf.DebertaV2Config(**BERT, legacy=False), 2, 20),
    "modernbert": (hf.ModernBertForMaskedLM, hf.ModernBertConfig(**MODERN), 2, 20),
}


def saved(folder: Path, name: str = "bert", maker: type | None = None) -> hf.PreTrainedModel:
    """A random model with a head whose biases are not zero, written to the folder."""
    kind, config, _, _ = SAVED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = (maker or kind)(config)
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                if part.endswith("bias"):
                    parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Every kind of checkpoint, saved and opened once: name -> (original, opened)."""
    made = {}
    for number, name in enumerate(SAVED):
        folder = tmp_path_factory.mktemp(f"checkpoint{number}")
        made[name] = saved(folder, name), open_pretrained(str(folder))
    return made


@pytest.mark.parametrize("name", SAVED)
class TestContract:
    def test_describes_the_checkpoint(self, name, checkpoints):
        _, start = checkpoints[name]
        _, config, layers, positions = SAVED[name]
        assert (start.architecture, start.vocabulary, start.width) == (config.model_type, 40, 32)
        assert start.positions == positions
        assert start.shape(16) == Shape(16, layers, 4)
        assert start.shape(16).hidden_size == 32
        inner = {"albert": None, "modernbert": 96}.get(name, 64)  # a repeated layer, a gated FFN
        assert start.shape(16).intermediate_size == inner
        assert start.has_head
        assert start.has_pair_head is (name == "bert, both heads")
        with pytest.raises(LengthError, match=f"has {positions} positions, asked for 21; use a"):
            start.shape(21)
        assert len(pickle.dumps(start)) < 1500
        assert pickle.loads(pickle.dumps(start)) == start

    def test_logits_are_those_of_the_original(self, name, checkpoints):
        theirs, start = checkpoints[name]
        mine = start.masked_language_model(seed=0).eval()
        given = tokens(2, 12) % 30 + 4
        visible = torch.ones_like(given)
        visible[1, 8:] = 0
        out = theirs(input_ids=given, attention_mask=visible)
        expected = out.logits if "logits" in out else out.prediction_logits
        found = mine(given, attention_mask=visible).logits.view(2, 12, 40)
        assert torch.allclose(found[visible.bool()], expected[visible.bool()], atol=1e-4)
        assert found.std() > 0.1

    def test_encoder_is_fresh_bare_and_takes_a_mask(self, name, checkpoints):
        theirs, start = checkpoints[name]
        state = torch.get_rng_state()
        one, two = start.encoder(), start.encoder()
        assert torch.equal(torch.get_rng_state(), state)
        assert one.training
        assert not any("pooler" in part for part, _ in one.named_parameters())
        given = tokens(1, 12) % 30 + 4
        expected = theirs.base_model(input_ids=given).last_hidden_state
        with torch.no_grad():
            next(one.parameters()).zero_()
        assert torch.allclose(two.eval()(input_ids=given).last_hidden_state, expected, atol=1e-5)
        attach(SequenceClassifier(two, 2, seed=0), masks.window(1))
        assert not torch.allclose(two(input_ids=given).last_hidden_state, expected, atol=0.01)

    def test_dropout_is_as_configured_or_as_asked(self, name, checkpoints):
        _, start = checkpoints[name]

        def rates(model: torch.nn.Module) -> set[float]:
            return {part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)}

        assert rates(start.encoder(dropout=0.25)) - {0.0} == {0.25}
        assert 0.25 not in rates(start.encoder())
        assert max(rates(start.masked_language_model(0, dropout=0.0)), default=0.0) == 0.0


def test_a_missing_head_is_drawn_from_the_seed(tmp_path):
    saved(tmp_path, maker=hf.BertModel)
    start = open_pretrained(tmp_path)
    assert not start.has_head
    one, two, other = (start.masked_language_model(seed) for seed in (3, 3, 4))
    fresh = MaskedLanguageModel(start.encoder(), seed=3)
    assert same(weights(one), weights(fresh))
    assert same(weights(two), weights(fresh))
    assert not same(weights(other.head), weights(fresh.head))


def test_an_untied_head_is_not_taken_for_a_tied_one(tmp_path):
    config = hf.BertConfig(**BERT, tie_word_embeddings=False)
    theirs = hf.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    start = open_pretrained(tmp_path / "theirs")
    assert start.has_head
    mine = start.masked_language_model(0).eval()
    expected = theirs(tokens(2, 8)).logits.flatten(0, 1)
    assert torch.allclose(mine(tokens(2, 8)).logits, expected, atol=1e-5)
    fresh = MaskedLanguageModel(start.encoder(), seed=0)
    assert sum(p.shape == (40, 32) for p in fresh.parameters()) == 2
    ms.save_pretrained(attach(mine, masks.full()), tmp_path / "mine")
    again = open_pretrained(tmp_path / "mine").masked_language_model(1).eval()
    assert torch.allclose(again(tokens(2, 8)).logits, expected, atol=1e-5)


def test_half_precision_is_read_as_float32(tmp_path):
    saved(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in open_pretrained(tmp_path).encoder().parameters()} == {torch.float32}


def test_shards_are_read_and_missed(tmp_path):
    model = saved(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    start = open_pretrained(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 1
    table = start.encoder().get_input_embeddings().weight
    assert torch.equal(table, model.get_input_embeddings().weight)
    next((tmp_path / "many").glob("model-*.safetensors")).unlink()
    with pytest.raises(DataError, match=r"holds no model-.*\.safetensors; give the whole folder"):
        open_pretrained(tmp_path / "many")


@pytest.mark.slow
def test_digest_follows_the_files(tmp_path):
    model = saved(tmp_path)
    start = open_pretrained(tmp_path)
    assert open_pretrained(tmp_path).digest == start.digest
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert open_pretrained(tmp_path).digest != start.digest
    with pytest.raises(DataError, match=r"has changed since .* was opened; open it again"):
        start.encoder()


def test_tokenizer_source_and_fit(tmp_path):
    saved(tmp_path, "roberta")
    start = open_pretrained(tmp_path)
    with pytest.raises(DataError, match="holds no tokenizer"):
        _ = start.tokenizer_source
    (tmp_path / "vocab.txt").write_text("[UNK]\n", encoding="utf-8")
    assert start.tokenizer_source == str(tmp_path)
    start.check_tokens(40, pad=1)
    with pytest.raises(DataError, match=r"the tokenizer has 41 ids, .* embeds 40; use the"):
        start.check_tokens(41, pad=1)
    with pytest.raises(DataError, match=r"pads with id 0, .* counts positions by id 1"):
        start.check_tokens(40, pad=0)
    saved(tmp_path / "bert")
    open_pretrained(tmp_path / "bert").check_tokens(30, pad=7)


# -- what cannot be opened ---------------------------------------------------------------------
def edited(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    text = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(text), encoding="utf-8")


def dense(folder: Path, **changes: object) -> None:
    saved(folder)
    edited(folder, **changes)


def bare(folder: Path, name: str = "", text: str = "") -> None:
    """A configuration without weights, and another file."""
    hf.BertConfig(**BERT).save_pretrained(folder)
    if name:
        (folder / name).write_text(text, encoding="utf-8")


def cut(folder: Path, keep: int) -> None:
    saved(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])


def unreadable(folder: Path) -> None:
    saved(folder)
    (folder / "config.json").write_text("{", encoding="utf-8")


def own_code(folder: Path) -> None:
    dense(folder, model_type="own", auto_map={"AutoConfig": "own.Own"})
    (folder / "own.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")


INDEX = "model.safetensors.index.json"
CLOSED = {  # what lies in a folder, and what is said of it
    "nothing": (lambda f: None, r"holds no config\.json; give the folder of save"),
    "no weights": (bare, r"holds no model\.safetensors; give the whole folder"),
    "index": (lambda f: bare(f, INDEX, "{"), "cannot be read"),
    "empty index": (lambda f: bare(f, INDEX, "{}"), "cannot be read"),
    "index of nothing": (lambda f: bare(f, INDEX, '{"weight_map": {}}'), "cannot be read"),
    "pickle": (lambda f: bare(f, "pytorch_model.bin", "not even a pickle"),
        r"Pickled weights .* can run any code"),
    **{f"{keep} bytes": (partial(cut, keep=keep), r"cannot be read as .*: .*the files are "
        "damaged, not whole") for keep in (0, 7, 50, 2000, -4)},
    "no JSON": (unreadable, r"config\.json cannot be read"),
    "own code": (own_code, r"config\.json cannot be read: .* code of its own, which is never run"),
    "width": (partial(dense, hidden_size=64),
        r"do not fit BertForMaskedLM in \d+ tensors, such as bert\..* \(stored \["),
    "depth": (partial(dense, num_hidden_layers=3),
        r"such as bert\.encoder\.layer\.2\..* \(missing\)"),
    "ids": (partial(dense, vocab_size=41), r"stored \[40, 32\], expected \[41, 32\]"),
    "gpt2": (partial(dense, model_type="gpt2"),
        "'gpt2' is not an encoder that predicts masked tokens"),
    "bart": (partial(dense, model_type="bart"), "'bart' is not an encoder"),
    "decoder": (partial(dense, is_decoder=True), "'bert' is not an encoder"),
    "unknown": (partial(dense, model_type="my-own"), r"config\.json cannot be read: .*my-own"),
    "no number": (partial(dense, hidden_size="wide"), r"config\.json cannot be read"),
    "heads": (partial(dense, num_attention_heads=5),
        "cannot be read.*: .*multiple of the number of attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLOSED)
def test_what_cannot_be_opened(tmp_path, case):
    write, said = CLOSED[case]
    write(tmp_path)
    with pytest.raises(DataError, match=said):
        open_pretrained(tmp_path)


def test_an_encoder_that_takes_no_mask(tmp_path, command):
    hf.IBertForMaskedLM(hf.IBertConfig(**BERT)).save_pretrained(tmp_path)
    with pytest.raises(AttachError, match="IBertModel does not use transformers' attention"):
        open_pretrained(tmp_path)
    said = command.refused("attach", tmp_path, "window(1)")
    assert said.startswith("error: IBertForMaskedLM does not use")
    assert "docs/supported_models.md" in said
    assert "request" not in said


def test_weights_without_a_decoder_are_refused_for_their_attention(tmp_path):
    config = hf.FunnelConfig(vocab_size=40, block_sizes=[1], d_model=32, n_head=2, d_inner=64)
    hf.FunnelForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(AttachError, match="FunnelForMaskedLM does not use transformers' attent"):
        open_pretrained(tmp_path)


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "NaN"), (torch.inf, "infinity")])
def test_weights_that_are_not_finite_are_called_so(tmp_path, value, what, command):
    model = saved(tmp_path)
    name = "bert.encoder.layer.1.output.dense.bias"
    with torch.no_grad():
        model.get_parameter(name)[3] = value
    model.save_pretrained(tmp_path)
    said = f"the weights of {tmp_path} hold {what} in {name}; take another checkpoint"
    with pytest.raises(DataError, match=said):
        open_pretrained(tmp_path)
    assert said in command.refused("attach", tmp_path, "window(1)")


@pytest.mark.parametrize("name", ["./absent", "/absent/bert", "~/absent", "a/b/c"])
def test_an_absent_folder_is_never_asked_of_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.setattr(f"{FILES}.download_checkpoint", None)
    bare(tmp_path)
    # a slash at the end is a folder's: no Hub is asked
    for absent, shown in (("my-bert/", "my-bert;"), (name, ""), (tmp_path / "config.json", "")):
        with pytest.raises(DataError, match=rf"no such folder: {shown}.* give a folder with con"):
            open_pretrained(absent)


@pytest.mark.parametrize(
    ("offline", "name", "said"),
    [
        (True, "my/bert", r"^no such folder: 'my/bert'; HF_HUB_OFFLINE is set"),
        (False, "not a name", r"no such folder: 'not a name', .* \(HFValidationError: Repo id"),
    ],
)
def test_no_hub_is_asked_offline_or_for_what_is_no_name(offline, name, said, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError, match=said):
        open_pretrained(name)


def test_an_unreachable_hub_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    calls = []

    class Hub:
        def model_info(self, name: str, **rest: object) -> None:
            calls.append((name, rest["timeout"]))
            raise ConnectionError("no route to host")

    monkeypatch.setattr(f"{FILES}.HfApi", Hub)
    said = r"no such folder: 'someone/bert', and the .* \(ConnectionError: no route.* give a local"
    with pytest.raises(DataError, match=said):
        open_pretrained("someone/bert")
    assert calls == [("someone/bert", 5.0)]  # one try


def test_a_name_on_the_hub_opens_with_its_mask(monkeypatch, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    home, mask = tmp_path / "models--someone--sparse", masks.window(2)
    model = ms.attach(hf.BertModel(hf.BertConfig(**BERT)), mask)
    ms.save_pretrained(model, home / "snapshots" / revision)
    for name in ("main", "v1"):
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / name).write_text(revision, encoding="utf-8")
    cached = partial(snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(f"{FILES}.snapshot_download", cached)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for ref in (None, "v1", revision):
        assert ms.attached(ms.load_pretrained("someone/sparse", revision=ref)) == {"self": mask}
    with pytest.raises(DataError, match="no such folder: 'someone/other'; HF_HUB_OFFLINE is set"):
        ms.load_pretrained("someone/other")
    with pytest.raises(DataError, match="no such folder: 'someone/sparse'; HF_HUB_OFFLINE is set"):
        ms.load_pretrained("someone/sparse", revision="v2")
    (tmp_path / "someone" / "sparse").mkdir(parents=True)  # a folder of that name comes first
    with pytest.raises(FileNotFoundError):
        ms.load_pretrained("someone/sparse")


def test_a_cached_hub_checkpoint_needs_no_network(monkeypatch, tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    home = tmp_path / "models--someone--bert"
    saved(home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision, encoding="utf-8")
    cached = partial(snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(f"{FILES}.snapshot_download", cached)
    monkeypatch.setattr(f"{FILES}.HfApi", None)
    start = open_pretrained("someone/bert")
    assert start.name == "someone/bert"
    assert start.folder.name == revision
    assert start.encoder().config.hidden_size == 32


def test_a_folder_that_is_not_on_this_machine(tmp_path):
    saved(tmp_path / "here")
    start = open_pretrained(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no such folder on this machine: .*; put the checkpoint"):
        start.encoder()


@pytest.mark.slow
def test_minilm():
    start = open_pretrained(minilm())
    assert start.shape(128) == Shape(128, layers=6, heads=12)
    assert (start.positions, start.vocabulary, start.width) == (512, 30_522, 384)
    assert not start.has_head
    assert sum(p.numel() for p in start.encoder().parameters()) == 22_565_376  # no pooling layer
