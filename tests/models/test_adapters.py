"""Trainers and wrappers around a model with a mask: checkpoints and adapters carry the mask."""

import copy
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from other_process import python
from tiny_encoders import seeded, sizes
from torch import Tensor, nn

import masksearch as ms
from masksearch import masks
from masksearch.errors import AttachError, DataError, MaskFormatError
from masksearch.models.checkpoints import verify
from masksearch.models.pretrained import open_pretrained

SIZES = sizes(30, 16, 2, 2, 16, 16, initializer_range=0.3)
UNDROPPED = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MASK = masks.window(2) | masks.global_tokens(1)
IDS = torch.randint(3, 30, (16, 12), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": ids, "labels": ids[3] % 2} for ids in IDS]


def classifier(trial: Any = None) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.BertForSequenceClassification(hf.BertConfig(**UNDROPPED))


def trainer(
    folder: Path, model: Any = None, *, callback: Any = None, rows: Any = ROWS, **more: Any
) -> hf.Trainer:
    pytest.importorskip("accelerate", reason="the Trainer needs it")
    settings = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 100,
        **{name: more.pop(name) for name in list(more) if name != "model_init"},
    }
    return hf.Trainer(
        model,
        hf.TrainingArguments(str(folder), **settings),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[ms.MaskCallback(MASK) if callback is None else callback],
        **more,
    )


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


# -- what a Trainer writes ---------------------------------------------------------------------
@pytest.mark.slow
def test_every_folder_of_a_trainer_holds_the_mask(tmp_path):
    training = trainer(tmp_path / "out", classifier())
    assert ms.attached(training.model) == {"self": MASK}  # before the first step
    training.train()
    training.save_model(str(tmp_path / "last"))
    for folder in (tmp_path / "out" / "checkpoint-4", tmp_path / "last"):
        again = ms.load_pretrained(folder)
        assert ms.attached(again) == {"self": MASK}
        assert torch.equal(logits(again), logits(training.model))
        assert not torch.allclose(logits(ms.detach(again)), logits(training.model), atol=1e-3)
        assert verify(folder) == {"self": MASK}
        config = json.loads((folder / "config.json").read_text())
        assert config["masksearch"]["masks"]["self"]["digest"] == MASK.digest
        assert config["masksearch"]["open_with"] == "masksearch.load_pretrained(folder)"
    dense = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "last")
    assert dense.config.masksearch["masks"]["self"]["mask"] == str(MASK)
    plain, masked = copy.deepcopy(training.model), logits(training.model)
    assert torch.equal(logits(plain), masked)
    ms.detach(plain).save_pretrained(tmp_path / "dense")  # the copy saves itself, and no mask
    assert verify(tmp_path / "dense") == {}


ALONE = """
import sys, transformers as hf
for opened in (hf.AutoModel, hf.BertForSequenceClassification, hf.AutoConfig):
    for folder in sys.argv[1:]:
        try:
            hf.AutoModel.from_config(opened.from_pretrained(folder))
        except ValueError as error:
            assert 'Specified `attn_implementation="masksearch"` is not supp' in str(error), error
            continue
        raise SystemExit(f"opened {folder}")
assert "masksearch" not in sys.modules
"""


@pytest.mark.slow
def test_a_folder_is_refused_by_transformers_alone_and_goes_on_here(tmp_path):
    first = ms.save_pretrained(ms.attach(classifier(), MASK), tmp_path / "first")
    again = ms.load_pretrained(first)
    assert torch.equal(logits(again), logits(ms.attach(classifier(), MASK)))
    training = trainer(tmp_path / "trained", again, callback=ms.MaskCallback())
    training.train()
    halfway, last = (tmp_path / "trained" / f"checkpoint-{step}" for step in (2, 4))
    assert torch.equal(logits(ms.load_pretrained(last)), logits(again))
    saved = ms.save_pretrained(ms.load_pretrained(last), tmp_path / "saved")
    assert torch.equal(logits(ms.load_pretrained(saved)), logits(again))
    bare = trainer(tmp_path / "bare", again, callback=hf.TrainerCallback(), max_steps=2)
    bare.train()  # without our callback
    folders = [first, halfway, last, saved, tmp_path / "bare" / "checkpoint-2"]
    done = python("-c", ALONE, *folders, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = trainer(tmp_path / "whole", classifier())
    whole.train()
    halves = tmp_path / "halves"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", halves / "checkpoint-2")
    resumed = trainer(halves, classifier())
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert torch.equal(logits(resumed.model), logits(whole.model))
    other = trainer(halves, classifier(), callback=ms.MaskCallback(masks.window(3)), max_steps=6)
    with pytest.raises(AttachError, match=r"of step 4 was trained under another mask .* window"):
        other.train(resume_from_checkpoint=True)
    own = ms.MaskCallback(ms.saved_masks(halves / "checkpoint-4"))  # the remedies
    assert trainer(halves, classifier(), callback=own, max_steps=6).train(True).global_step == 6
    other.train(resume_from_checkpoint=None)


@pytest.mark.slow
def test_the_best_model_comes_back_under_its_mask(tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    training = trainer(tmp_path, classifier(), **steps)
    training.train()
    best = ms.load_pretrained(training.state.best_model_checkpoint)
    assert torch.equal(logits(best), logits(training.model))
    assert ms.attached(training.model) == {"self": MASK}


@pytest.mark.slow
def test_models_of_a_hyperparameter_search_carry_the_mask(tmp_path):
    config, made = hf.BertConfig(**UNDROPPED), []

    def model_init(trial: Any = None) -> Any:
        made.append(hf.BertForSequenceClassification(config))
        return made[-1]

    training = trainer(tmp_path, None, model_init=model_init)
    training.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        backend="optuna",
        n_trials=2,
    )
    assert len(made) >= 3
    assert all(ms.attached(model) == {"self": MASK} for model in made)
    for number in range(2):
        assert verify(tmp_path / f"run-{number}" / "checkpoint-4") == {"self": MASK}


@pytest.mark.slow
def test_the_mask_may_be_on_the_model_already(tmp_path):
    with pytest.raises(AttachError, match="no mask is attached to this BertForSequenceClass"):
        trainer(tmp_path, classifier(), callback=ms.MaskCallback()).train()
    masked = ms.attach(classifier(), masks.window(4))
    trainer(tmp_path, masked, callback=ms.MaskCallback()).train()
    assert ms.saved_masks(tmp_path / "checkpoint-4") == {"self": masks.window(4)}
    assert ms.attached(trainer(tmp_path, masked).model) == {"self": MASK}  # takes its place
    with pytest.raises(TypeError, match=r"MaskCallback takes a mask.* got 'window\(2\)'"):
        ms.MaskCallback("window(2)")


@pytest.mark.slow
def test_scores_of_a_callback_that_is_added_later_are_refused_until_its_mask_is_on(tmp_path):
    model = classifier()
    late = trainer(tmp_path / "late", model, callback=hf.TrainerCallback(), eval_strategy="steps")
    late.add_callback(ms.MaskCallback(MASK))
    says = r"under no mask, not under window\(2\) .* added .* callbacks=\[.* ms\.attach\(model, m"
    for scores in (late.evaluate, lambda: late.predict(ROWS)):
        with pytest.raises(AttachError, match=says):
            scores()
    ms.attach(model, masks.window(5))
    with pytest.raises(AttachError, match=r"under window\(5\), not under window\(2\)"):
        late.evaluate()
    ms.attach(model, MASK)  # the remedies
    expected = late.evaluate()["eval_loss"]
    made_with = trainer(tmp_path / "made with", classifier())
    assert made_with.evaluate()["eval_loss"] == expected
    ms.detach(model)
    with pytest.raises(AttachError, match=r"for dense scores trainer\.remove_callback\(ms\.M"):
        late.evaluate()
    late.train()  # puts it on, evaluates and saves
    assert ms.attached(model) == {"self": MASK} == verify(tmp_path / "late" / "checkpoint-4")
    made_with.train()
    assert late.evaluate()["eval_loss"] == made_with.evaluate()["eval_loss"]
    late.save_model(str(tmp_path / "last"))
    assert verify(tmp_path / "last") == {"self": MASK}


@pytest.mark.slow
def test_scores_of_a_mapping_and_of_the_mask_of_the_model_are_those_of_their_masks(tmp_path):
    for mask in ({"self": MASK}, None):
        late = trainer(tmp_path, classifier(), callback=hf.TrainerCallback())
        late.add_callback(ms.MaskCallback(mask))
        with pytest.raises(AttachError, match="under no mask, not under"):
            late.evaluate()
        ms.attach(late.model, MASK)
        assert late.predict(ROWS).predictions == pytest.approx(
            logits(late.model).numpy(), abs=1e-6
        )


# -- folders that lack their mask --------------------------------------------------------------
@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """An encoder that was saved with its mask."""
    model = ms.attach(hf.BertForMaskedLM(hf.BertConfig(**SIZES)), MASK)
    return ms.save_pretrained(model, tmp_path / "bert")


def test_a_folder_whose_mask_is_lost_is_not_judged(bert, caplog):
    start = open_pretrained(bert)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{bert.resolve()} was trained under {MASK}; what is judged takes its")
    assert start.layers == 2
    (bert / "mask.json").unlink()
    with pytest.raises(FileNotFoundError, match="names this mask file, it is missing"):
        open_pretrained(bert)
    (bert / "masksearch.json").unlink()
    for read in (open_pretrained, verify, ms.load_pretrained):
        with pytest.raises(FileNotFoundError, match=r"config.json names a mask, .* no masksearch"):
            read(bert)
    for evaluator in (ms.MlmEvaluator, partial(ms.GlueEvaluator, glue="GLUE")):
        with pytest.raises(FileNotFoundError, match=r"config.json names a mask, .* no masksearch"):
            _ = evaluator("words.txt", weights=bert).shape
    model = hf.BertForMaskedLM.from_pretrained(bert)  # the remedy
    ms.save_pretrained(ms.attach(model, MASK), bert)
    assert verify(bert) == {"self": MASK}
    assert open_pretrained(bert).layers == 2


@pytest.mark.slow
def test_a_checkpoint_of_a_trainer_without_the_callback_says_what_it_lacks(tmp_path):
    training = trainer(tmp_path, ms.attach(classifier(), MASK), callback=hf.TrainerCallback())
    training.train()
    with pytest.raises(FileNotFoundError, match=r"window\(2\) \| global_tokens\(1\) \(digest"):
        ms.load_pretrained(tmp_path / "checkpoint-4")
    path = tmp_path / "checkpoint-4" / "config.json"
    config = json.loads(path.read_text())
    del config["masksearch"]  # the other remedy
    path.write_text(json.dumps(config))
    assert verify(path.parent) == {}


def test_a_mask_and_weights_of_two_saves_are_told_apart(bert):
    model = ms.load_pretrained(bert)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(1)
    model.save_pretrained(bert)  # transformers alone
    for read in (verify, ms.load_pretrained):
        with pytest.raises(DataError, match=r"model\.safetensors is not what the mask was"):
            read(bert)
    ms.save_pretrained(model, bert)
    assert verify(bert) == {"self": MASK}
    other = ms.attach(model, masks.window(3))
    other.config.save_pretrained(bert)
    for read in (verify, ms.load_pretrained, open_pretrained):
        with pytest.raises(MaskFormatError, match=r"names window\(3\) \(dig.*, and the mask th"):
            read(bert)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        verify(bert / "nowhere")


# -- wrappers are seen through, and adapters are saved with the mask ----------------------------
def llama() -> Any:
    return seeded(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, eos_token_id=None)), 0)


def with_adapter(model: Any, **settings: Any) -> Any:
    """A LoRA around the model, with weights that change something."""
    peft = pytest.importorskip("peft", reason="of the dev extra")
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, **settings))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for name, parameter in made.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    return made.eval()


def follow(message: str, **names: Any) -> None:
    """Runs the calls that an error names."""
    calls = re.findall(r"ms\.\w+\([^;]*\)", message)
    assert calls, message
    for call in calls:
        exec(call, {"ms": ms, **names})


# -- wrappers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [with_adapter, torch.compile, nn.DataParallel, lambda m: nn.DataParallel(with_adapter(m))],
)
def test_wrappers_are_seen_through(wrap, first):
    inner = llama()
    if first:
        ms.attach(inner, MASK)
    outer = wrap(inner)
    if not first:
        assert ms.attach(outer, MASK) is outer
    for each in (outer, inner):
        assert ms.attached(each) == {"self": MASK}
        assert ms.explain(each, length=12).rows[0].names[0] == "model.layers.0.self_attn"
    assert ms.detach(outer) is outer
    assert ms.attached(inner) == {}
    with pytest.raises(AttachError, match="detach takes the module that attach was given, or one"):
        ms.detach(outer)
    with pytest.raises(AttachError, match=r"ms.attach\(model, mask\) first"):
        ms.explain(outer)


def test_what_is_attached_through_a_wrapper_is_in_force():
    outer = with_adapter(llama())
    plain = logits(outer)
    masked = logits(ms.attach(outer, MASK))
    assert not torch.allclose(masked, plain, atol=1e-3)
    assert torch.equal(logits(ms.detach(outer)), plain)


def test_a_compiled_model_is_saved_as_it_is(tmp_path):
    model = ms.attach(llama(), MASK)
    ms.save_pretrained(torch.compile(model, backend="eager"), tmp_path)
    assert torch.equal(logits(ms.load_pretrained(tmp_path)), logits(model))


def test_the_remedy_for_a_module_of_ones_own_works(tmp_path):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList([llama()])

        def forward(self, input_ids: Tensor) -> Any:
            return self.body[0](input_ids=input_ids)

    model = ms.attach(Around().eval(), MASK, inputs={"input_ids": IDS[:, :5]})
    expected = logits(model)
    with pytest.raises(AttachError, match=r"ms\.attach\(model\.get_submodule") as error:
        ms.save_pretrained(model, tmp_path)
    follow(str(error.value), model=model, mask=MASK, folder=tmp_path)
    assert torch.equal(logits(ms.load_pretrained(tmp_path)), expected)


# -- adapters ----------------------------------------------------------------------------------
@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model without a mask in a folder."""
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def opened(folder: Path) -> Any:
    return hf.LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.mark.slow
def test_an_adapter_is_not_saved_over_its_base(base, tmp_path):
    shutil.copytree(base, tmp_path / "own")
    before = sorted(path.name for path in (tmp_path / "own").iterdir())
    model = ms.attach(with_adapter(opened(tmp_path / "own")), MASK)
    with pytest.raises(AttachError, match=r"holds the base of this .*another folder"):
        ms.save_pretrained(model, tmp_path / "own")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == before


@pytest.mark.slow
def test_an_adapter_comes_back_with_its_mask(base, tmp_path):
    model = ms.attach(with_adapter(opened(base)), MASK)
    folder = ms.save_pretrained(model, tmp_path / "adapter")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "mask.json"} < names
    assert not {"model.safetensors", "config.json"} & names
    again = ms.load_pretrained(folder)
    assert type(again) is type(model)
    assert ms.attached(again) == {"self": MASK}
    assert torch.equal(logits(again), logits(model))
    plain = hf.AutoModelForCausalLM.from_pretrained(folder)  # transformers: dense
    assert torch.allclose(logits(plain), logits(ms.detach(model)), atol=1e-6)
    with pytest.raises(DataError, match=r"holds an adapter .* write one") as error:
        open_pretrained(folder)
    follow(str(error.value), model=again, folder=tmp_path / "merged")
    merged = ms.load_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(ms.load_pretrained(folder)), atol=1e-5)
    assert ms.attached(merged) == {"self": MASK}


def test_an_adapter_may_bring_a_head(tmp_path):
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    whole = hf.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    model = ms.attach(with_adapter(whole, task_type="SEQ_CLS"), MASK)
    again = ms.load_pretrained(ms.save_pretrained(model, tmp_path / "adapter"))
    assert logits(again).shape[1] == 3
    assert torch.equal(logits(again), logits(model))


def test_an_adapter_whose_base_has_no_name_is_merged(base, tmp_path):
    model = ms.attach(with_adapter(llama()), MASK)
    expected = logits(model)
    with pytest.raises(AttachError, match=r"loaded from .* of a model without a name") as error:
        ms.save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    follow(str(error.value), model=model, folder=tmp_path / "out")
    assert torch.allclose(logits(ms.load_pretrained(tmp_path / "out")), expected, atol=1e-5)
    several = with_adapter(opened(base))
    several.add_adapter("other", several.peft_config["default"])
    with pytest.raises(AttachError, match="has the adapters default, other") as error:
        ms.save_pretrained(ms.attach(several, MASK), tmp_path / "several")
    follow(str(error.value), model=several, folder=tmp_path / "several")


@pytest.mark.slow
def test_a_trainer_writes_adapters_with_their_mask(base, tmp_path):
    rows, out = [{"input_ids": ids, "labels": ids} for ids in IDS], tmp_path / "out"
    settings = {"rows": rows, "save_steps": 1}
    first = trainer(out, with_adapter(opened(base)), max_steps=2, **settings)
    first.train()
    again = ms.load_pretrained(out / "checkpoint-2")
    assert torch.equal(logits(again), logits(first.model))
    assert ms.attached(again) == {"self": MASK}
    trainer(out, with_adapter(opened(base)), max_steps=3, **settings).train(True)
    assert verify(out / "checkpoint-3") == {"self": MASK}


def test_an_adapter_is_not_read_from_a_pickle(base, tmp_path):
    folder = ms.save_pretrained(ms.attach(with_adapter(opened(base)), MASK), tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors, and pickles"):
        ms.load_pretrained(folder)
