"""The model card of a saved folder, and its upload to a stand-in of the Hub."""

import base64
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from PIL import Image
from tiny_encoders import sizes

import masksearch as ms
from masksearch import masks
from masksearch.errors import DataError
from masksearch_decoders.plan import Plan

SIZES = sizes(30, 8, 2, 2, 8, 16)
MASK = masks.window(2) | masks.global_tokens(1)
UNSEEN = {"dense": 2.5, "masked": 2.75, "difference": 0.25, "documents": 40}
PLAN = Plan(
    model={"name": "tiny", "architecture": "llama", "digest": "9f12"},
    unit="layer",
    levels=(masks.window(3), masks.full()),
    units={"l0": 1, "l1": 0},
    mask=masks.per_layer([masks.full(), masks.window(3)]),
    found={
        "budget": {"cost": "kv_bytes", "limit": 0.25},
        "length": 16,
        "nll": {"unseen": UNSEEN | {"low": 0.125, "high": 0.375}},
        "rival": {"mask": "window(9)", "difference": -0.1, "low": -0.3, "high": 0.1},
    },
)


def bert(mask: Any = MASK) -> Any:
    return ms.attach(hf.BertModel(hf.BertConfig(**SIZES)).eval(), mask)


def llama(mask: Any = PLAN.mask) -> Any:
    config = hf.LlamaConfig(**SIZES, num_key_value_heads=2)
    return ms.attach(hf.LlamaForCausalLM(config).eval(), mask)


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_what_the_card_says_holds(tmp_path):
    folder = ms.save_pretrained(bert(), tmp_path)
    known = {"library_name": "masksearch", "tags": ["masksearch", "sparse-attention"]}
    assert metadata_load(folder / "README.md") == known  # no field is empty
    assert ModelCard.load(folder / "README.md").data.to_dict() == known
    text = card(folder)
    [row] = [line for line in text.splitlines() if line.startswith("| mask |")]
    assert row == "| mask | <code>window(2) &#124; global_tokens(1)</code> |"
    kept = sum(abs(q - k) <= 2 or 0 in (q, k) for q in range(16) for k in range(16))
    assert f"{1 - kept / 256:.1%} of all cells at 16 positions" in text
    assert "nats" not in text
    assert "base model" not in text
    with Image.open(folder / "mask.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("L")))
    times = len(pixels) // 16
    assert 500 <= len(pixels) < 550  # pages blur what they enlarge
    table = MASK.dense(16)[0, 0].repeat_interleave(times, 0).repeat_interleave(times, 1)
    assert torch.equal(pixels < 128, table)
    assert f'<img src="mask.png" width="{len(pixels)}"' in text
    assert text.count("Transformers alone refuses this folder") == 1


@pytest.mark.parametrize("mask", [MASK, masks.table(MASK.dense(12))])
def test_the_code_of_the_card_runs(mask, tmp_path, monkeypatch):
    folder = ms.save_pretrained(bert(mask), tmp_path)
    monkeypatch.setattr("masksearch.models.checkpoints.snapshot_download", lambda **_: folder)
    [code] = [each.split("```")[0] for each in card(folder).split("```python\n")[1:]]
    space: dict[str, Any] = {}
    exec(code, space)
    assert ms.attached(space["model"]) == {"self": mask}


@pytest.mark.nightly
def test_a_base_from_the_hub_is_named(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--tiny--bert"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("9f" * 20)
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(cached / "snapshots" / ("9f" * 20))
    script = (
        "import masksearch as ms, transformers as hf\n"
        "model = ms.attach(hf.BertModel.from_pretrained('tiny/bert'), ms.masks.window(2))\n"
        "ms.save_pretrained(model, 'out')\n"
        "text = open('out/README.md').read()\n"
        "code = text.split('```python\\n')[-1].split('```')[0]\n"
        "exec(code, space := {'ms': ms, 'model': ms.load_pretrained('out')})\n"
        "assert ms.attached(space['base']) == {'self': ms.masks.window(2)}\n"
        "local = hf.BertModel.from_pretrained('out')\n"
        "ms.save_pretrained(ms.attach(local, ms.masks.window(2)), 'again')\n"
    )
    run(script, tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert metadata_load(tmp_path / "out" / "README.md")["base_model"] == "tiny/bert"
    assert "base_model" not in metadata_load(tmp_path / "again" / "README.md")  # a folder's name


def test_a_plan_gives_budget_losses_and_rows(tmp_path):
    text = card(ms.save_pretrained(llama(), tmp_path / "whole", found=PLAN))
    kept = 16 * 17 // 2 + sum(0 <= q - k <= 3 for q in range(16) for k in range(16))
    assert f"{1 - kept / (16 * 17):.1%} of a decoder's cells at 16 positions" in text
    assert "Budget: 0.25 of dense attention's kv_bytes." in text
    assert "masksearch allocate tiny TEXT --budget 0.25 --unit layer --length 16" in text
    assert "| on 40 documents that the search has not seen | nats a token |" in text
    assert "| mask minus dense, 95 % interval over rows | +0.2500 [+0.1250, +0.3750] |" in text
    assert "`window(9)` in every layer: neither is shown to be better: -0.1000" in text
    without = replace(
        PLAN, found=PLAN.found | {"nll": {"search": 2.7, "unseen": None}, "rival": None}
    )
    assert "nats" not in card(ms.save_pretrained(llama(), tmp_path / "unseen", found=without))
    few = replace(PLAN, found={"nll": {"unseen": UNSEEN | {"pieces_of": 3}}})
    text = card(ms.save_pretrained(llama(), tmp_path / "few", found=few))
    assert "on 40 pieces of 3 documents" in text
    assert "+0.2500 |" in text
    assert "Budget" not in text
    with pytest.raises(ValueError, match=r"found= is the plan of per_layer.*attached is window"):
        ms.save_pretrained(llama(masks.window(1)), tmp_path, found=PLAN)


def test_the_card_is_renewed_and_a_users_own_is_kept(tmp_path):
    folder = ms.save_pretrained(bert(), tmp_path)
    ms.save_pretrained(bert(masks.window(3)), folder)
    assert "<code>window(3)</code>" in card(folder)
    changed = card(folder).replace("# BertModel", "# My model")
    (folder / "README.md").write_text(changed, encoding="utf-8")
    ms.save_pretrained(bert(), folder)
    assert card(folder) == changed
    (folder / "README.md").write_bytes(b"\xff mine")
    ms.save_pretrained(bert(), folder)
    assert (folder / "README.md").read_bytes() == b"\xff mine"


def test_an_adapter_and_parts_have_cards_of_ours(tmp_path):
    peft = pytest.importorskip("peft")
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    base = hf.BertModel.from_pretrained(tmp_path / "base")
    adapter = ms.attach(peft.get_peft_model(base, peft.LoraConfig(r=2)), MASK)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    assert card(ms.save_pretrained(adapter, tmp_path / "own")) == "mine"  # PEFT's is not taken
    folder = ms.save_pretrained(adapter, tmp_path / "adapter")
    assert metadata_load(folder / "README.md")["library_name"] == "masksearch"
    config = hf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    for leaf in (masks.special_tokens(1), masks.same_token()):
        both = {"encoder": masks.window(3), "decoder": leaf | masks.window(0)}
        folder = ms.save_pretrained(ms.attach(hf.T5Model(config), both), tmp_path / leaf.kind)
        assert {path.name for path in folder.glob("*.png")} == {"mask.encoder.png"}
        assert f"| mask of decoder | <code>{leaf} &#124; window(0)</code> |" in card(folder)
    ms.save_pretrained(bert(), folder)
    assert {path.name for path in folder.glob("*.png")} == {"mask.png"}


# -- the Hub -----------------------------------------------------------------------------------
class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as an upload of small files needs."""

    calls: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.calls.append((self.path, str(self.headers["Authorization"]), body))
        here = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        found: dict[str, Any] = {}
        if self.path == "/api/repos/create":
            found = {"url": f"{here}/me/tiny"}
        elif "/preupload/" in self.path:
            files = [
                {"path": e["path"], "uploadMode": "regular"} for e in json.loads(body)["files"]
            ]
            found = {"files": [each | {"shouldIgnore": False} for each in files]}
        elif "/commit/" in self.path:
            found = {"commitUrl": f"{here}/me/tiny/commit/9f", "commitOid": "9f" * 20}
        refused = self.headers["Authorization"] == "Bearer hf_reader"
        data = json.dumps({"error": "no write access"} if refused else found).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *said: Any) -> None:
        """Nothing is printed."""


def run(script: str, folder: Path, **variables: str) -> str:
    """What a script says on its last line; an error is its last line on stderr."""
    own = {name: v for name, v in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    own |= {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(Path(ms.__file__).parents[1])}
    own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=own, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip()


PUSH = "import masksearch as ms; print(ms.push_to_hub('model', 'me/tiny', private=True))"


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Hub,), {"calls": []}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.nightly
def test_an_upload_holds_the_folder_and_no_pickle(tmp_path, hub):
    folder = ms.save_pretrained(bert(), tmp_path / "model")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"1")
    (folder / "runs" / "checkpoint-2").mkdir(parents=True)
    kept = ("training_args.bin", "data.pkl", "a.ckpt", "runs/.env", "runs/checkpoint-2/a.json")
    for name in kept:
        (folder / name).write_bytes(b"pickle")
    place = f"http://127.0.0.1:{hub.server_port}"
    said = run(PUSH, tmp_path, HF_ENDPOINT=place, HF_TOKEN="hf_writer")
    assert said == f"{place}/me/tiny/commit/9f"
    calls = hub.RequestHandlerClass.calls
    [made] = [json.loads(body) for path, _, body in calls if path == "/api/repos/create"]
    assert (made["name"], made["organization"], made["visibility"]) == ("tiny", "me", "private")
    assert {token for _, token, _ in calls} == {"Bearer hf_writer"}
    [sent] = [body for path, _, body in calls if "/commit/" in path]
    lines = [json.loads(line) for line in sent.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in lines
        if line["key"] == "file"
    }
    expected = {"README.md", "config.json", "mask.json", "mask.png", "masksearch.json"}
    assert set(files) == expected | {"model.safetensors"}
    for name, content in files.items():
        assert content == (folder / name).read_bytes(), name
    with pytest.raises(RuntimeError, match=r"DataError: model was not uploaded to me/tiny .*403"):
        run(PUSH, tmp_path, HF_ENDPOINT=place, HF_TOKEN="hf_reader")


def test_what_is_not_uploaded(tmp_path, monkeypatch):
    monkeypatch.setattr("masksearch.models.card.get_token", lambda: None)
    folder = ms.save_pretrained(bert(), tmp_path / "model")
    with pytest.raises(DataError, match=r"to me/tiny needs a token .* run hf auth login, or set"):
        ms.push_to_hub(folder, "me/tiny")
    (folder / "mask.json").unlink()
    with pytest.raises(FileNotFoundError, match="this mask file, it is missing"):
        ms.push_to_hub(folder, "me/tiny")
    hf.BertModel(hf.BertConfig(**SIZES)).save_pretrained(tmp_path / "dense")
    with pytest.raises(DataError, match=r"dense holds a dense model, and only"):
        ms.push_to_hub(tmp_path / "dense", "me/tiny")
