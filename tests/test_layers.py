"""The dependency direction, held by a walk over the syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "masksearch"
RANKS = [
    {"errors", "masks"},
    {"contracts", "constraints"},
    {"results", "models", "train", "accumulation", "train_state", "lamb", "checkpoints", "stored"}
    | {"distributed"},
    {"tasks"},
    {"gates", "positions", "evaluators"},
    {"strategies"},
    {"executors"},
    {"session", "driver", "reporting", "proxy_runs", "choices", "user_code", "demo", "printing"}
    | {"progress_bar", "judging"},
    {"cli", "cli_attach", "cli_options", "cli_pretrain", "cli_proxy", "cli_search"},
]
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
TOP = {"__init__", "__main__"}  # the façade and the entry point stand above all parts
LONGEST = 400  # lines
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def part_of(path: Path) -> str:
    """First name below the package: a folder or a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports anywhere, also inside functions, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_the_walk_sees_the_package():
    assert len(FILES) > 30
    assert "masksearch.masks.core.Mask" in dict(imported(PACKAGE / "contracts.py"))


def test_every_part_has_a_rank():
    parts = {part_of(path) for path in FILES} - TOP
    assert parts <= set(RANK), f"give {sorted(parts - set(RANK))} a place in RANKS"


@pytest.mark.parametrize("name", NAMES)
def test_left_never_imports_right(name):
    path = PACKAGE / name
    own = part_of(path)
    if own in TOP:
        return
    for module, line in imported(path):
        names = module.split(".")
        if names[0] != "masksearch":
            continue
        assert len(names) > 1, f"{name}:{line} imports the façade; import the part that it needs"
        target = names[1]
        if target not in RANK:  # `from masksearch import Mask` instead of a part
            pytest.fail(f"{name}:{line} imports {target!r} from the façade, not from its part")
        assert RANK[target] <= RANK[own], f"{name}:{line}: {own} must not import {module}"


@pytest.mark.parametrize("name", NAMES)
def test_ray_and_the_attention_interface_have_one_file_each(name):
    for module, line in imported(PACKAGE / name):
        if module.split(".")[0] == "ray":
            assert name == "executors/ray_tune.py", f"{name}:{line} imports ray"
        if module.split(".")[-1] in ("AttentionInterface", "AttentionMaskInterface"):
            assert name == "models/attach.py", f"{name}:{line} uses the attention interface"


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_named_for_what_they_hold(name):
    assert Path(name).name not in ("utils.py", "base.py", "registry.py", "helpers.py", "common.py")
    lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{name} has {lines} lines, at most {LONGEST}"


def test_no_module_shadows_a_public_name():
    import masksearch

    for path in FILES:
        name = path.stem if path.stem != "__init__" else path.parent.name
        parents = path.relative_to(PACKAGE).parts
        if len(parents) == 1 and name in masksearch.__all__:
            pytest.fail(f"{parents[0]} would shadow masksearch.{name}")
