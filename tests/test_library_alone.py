"""The library below the search needs what `pip install masksearch` installs, and nothing else."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys

hidden, folder = set(sys.argv[2:]), sys.argv[1]


class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # what importlib.metadata asks finders for
        return getattr(self.finder, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]

import torch
import transformers as hf

import masksearch as ms
from masksearch import masks
from masksearch.models.checkpoints import verify

sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
sizes |= {"intermediate_size": 16, "max_position_embeddings": 16}
ids = torch.arange(12)[None]
mask = masks.parse("window(1) | global_tokens(1)")
model = ms.attach(hf.BertModel(hf.BertConfig(**sizes)).eval(), mask)
with torch.no_grad():
    expected = model(ids)[0]
    ms.save_pretrained(model, folder + "/bert")
    again = ms.load_pretrained(folder + "/bert")
    assert verify(folder + "/bert") == ms.attached(again) == {"self": mask}
    assert torch.equal(again(ids)[0], expected)
    exported = torch.export.export(again, (ids,)).module()
    assert torch.allclose(exported(ids)[0], expected, atol=1e-6)
qwen = hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8)).eval()
layers = masks.per_layer([masks.full(), masks.window(3)])
ms.to_native(qwen, layers).save_pretrained(folder + "/qwen")
with torch.no_grad():
    served = hf.AutoModelForCausalLM.from_pretrained(folder + "/qwen")(ids).logits
    assert torch.allclose(ms.attach(qwen, layers)(ids).logits, served, atol=1e-5)
assert 0 < ms.kv_bytes(layers, qwen, length=16).share < 1
assert ms.explain(model, 12).rows
loaded = {name.partition(".")[0] for name in sys.modules} & hidden
assert not loaded, loaded
from masksearch.__main__ import main

for call, error in ((lambda: ms.search, ModuleNotFoundError), (main, SystemExit)):
    try:
        call()
    except error as raised:
        assert raised.args == (2,) or "[search]" in str(raised), raised
    else:
        raise AssertionError(call)
"""


def needed(names: list[str]) -> set[str]:
    """Distributions that these install, themselves among them, without extras."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        plain = [line for line in lines if "extra ==" not in line]
        names += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in plain]
    return found


@pytest.mark.nightly
def test_a_mask_is_attached_saved_loaded_and_exported_without_the_search(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    five = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(name in readme.partition("## Install")[2].partition("##")[0] for name in five)
    known = needed(five)
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & known
        and not module.startswith(("_", "masksearch"))
    ]
    assert {"optuna", "pandas", "sklearn", "scipy", "matplotlib", "altair"} <= set(hidden)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *hidden],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(
        r"^error: commands need optuna and more: pip install .*\[search\]", done.stderr, re.M
    )
