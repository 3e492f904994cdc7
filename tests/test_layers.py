"""The dependency direction and the absence of circles, held by a walk over the syntax trees."""

import ast
import collections
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parsed import DECODERS, FILES, PACKAGE, nodes_of, tree_of

RANKS = [
    # the library: masks on models
    {"errors", "files", "neighbours"},
    {"masks"},
    {"attention"},
    {"models"},
    # the search
    {"contracts", "user_code"},
    {"training", "tasks", "analysis"},
    {"gates", "study"},
    {"positions", "report"},
    {"evaluators"},
    {"strategies"},
    {"executors"},
    {"driver", "testing"},
    {"sparsifier", "plots"},
    {"cli"},
]
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
TOP = {"__init__", "__main__"}  # the façade and the entry point stand above all parts
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def part_of(path: Path) -> str:
    """First name below the package: a folder or a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported(path: Path, *, typing: bool = True) -> list[tuple[str, int]]:
    """Every module that a file imports anywhere, also inside functions, with its line.

    `typing=False` leaves out what stands under `if TYPE_CHECKING:`.
    """
    found = []
    for node in nodes_of(path) if typing else untyped(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def untyped(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of a syntax tree but those under `if TYPE_CHECKING:`."""
    ahead = [tree]
    while ahead:
        node = ahead.pop()
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            ahead += ast.iter_child_nodes(node)


def file_of(module: str, package: Path = PACKAGE) -> str | None:
    """The file below the package that `module` (or the name in it) is imported from."""
    first, *names = module.split(".")
    while names and first == package.name:
        for path in (Path(*names).with_suffix(".py"), Path(*names, "__init__.py")):
            if (package / path).is_file():
                return str(path)
        names = names[:-1]
    return None


def test_the_walk_sees_the_package():
    assert len(FILES) > 30
    assert "masksearch.masks.core.Mask" in dict(imported(PACKAGE / "contracts.py"))
    assert file_of("masksearch.masks.core.Mask") == "masks/core.py"


LIBRARY = set().union(*RANKS[:4])  # what stands below the search


@pytest.mark.slow
def test_the_library_works_where_there_is_no_search(tmp_path):
    """Masks on models: attached, saved and opened, with the rooms above taken away."""
    (tmp_path / "masksearch").mkdir()
    for part in sorted(LIBRARY | TOP - {"__main__"}):
        here = PACKAGE / (part if (PACKAGE / part).is_dir() else f"{part}.py")
        (shutil.copytree if here.is_dir() else shutil.copy)(
            here, tmp_path / "masksearch" / here.name
        )
    program = tmp_path / "program.py"
    program.write_text(ALONE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env=environment | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


ALONE = """
import sys
from importlib.util import find_spec
from pathlib import Path

# an editable installation would find the missing rooms
sys.meta_path = [each for each in sys.meta_path if "editable" not in str(each)]

import torch
from transformers import BertConfig, BertModel

import masksearch as ms
from masksearch import masks

here = Path(sys.argv[1])
assert Path(ms.__file__).is_relative_to(here), ms.__file__
assert find_spec("masksearch.contracts") is None
mask = masks.window(2) | masks.global_tokens(1)
assert 0 < mask.sparsity(16) < 1
assert ms.Shape(16, 2, 2).layers == 2
torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
model = BertModel(BertConfig(vocab_size=30, intermediate_size=32, **sizes)).eval()
ids = torch.randint(0, 30, (2, 16))
dense = model(input_ids=ids).last_hidden_state
masked = ms.attach(model, mask)(input_ids=ids).last_hidden_state
assert not torch.allclose(dense, masked)
ms.save_pretrained(model, here / "saved")
again = ms.load_pretrained(here / "saved").eval()
assert torch.allclose(again(input_ids=ids).last_hidden_state, masked, atol=1e-6)
ms.detach(model)
assert torch.allclose(model(input_ids=ids).last_hidden_state, dense, atol=1e-6)
try:
    ms.search
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("there is a search")
"""


def test_every_part_has_a_rank():
    parts = {part_of(path) for path in FILES} - TOP
    assert parts <= set(RANK), f"give {sorted(parts - set(RANK))} a place in RANKS"


def test_left_never_imports_right():
    wrong = []
    for path in FILES:
        if (own := part_of(path)) in TOP:
            continue
        for module, line in imported(path):
            first, target, *_ = [*module.split("."), ""]
            if first != "masksearch":
                continue
            place = f"{path.relative_to(PACKAGE)}:{line}"
            if target not in RANK:  # `import masksearch`, or `from masksearch import Mask`
                wrong.append(f"{place} imports {target!r} from the façade, not from its part")
            elif RANK[target] > RANK[own]:
                wrong.append(f"{place}: {own} must not import {module}")
    assert not wrong


def test_the_package_knows_nothing_of_the_distributions_beside_it():
    """They stand on this one, which finds what they add by entry points."""
    assert not {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for module, _ in imported(path)
        if module[:11] == "masksearch_"
    }
    named = {str(path) for path in FILES if "masksearch_decoders" in path.read_text("utf-8")}
    allowed = ("__init__.py", "cli/doctor.py", "models/card.py")  # in what they say
    assert named == {str(PACKAGE / name) for name in allowed}


def test_decoders_stand_on_the_rooms_and_their_command_alone_on_the_command_line():
    for path in DECODERS:
        for module, line in imported(path):
            first, room, *_ = [*module.split("."), "", ""]
            place = f"{path.name}:{line}"
            assert first != "masksearch_bench", place
            if first == "masksearch":
                known = room in RANK or module == "masksearch.masks"
                known = known or path.name == "__init__.py"  # lazy, as the façade is
                assert known, f"{place} imports {room!r} from the façade, not from its part"
                assert room != "cli" or path.name == "command.py", place


def test_one_arrow_is_bound_late():
    """A text may name the mask of a run: masks/ asks study/, which stands right of it, by name."""
    late = [name for name in NAMES if "resolve_name(" in (PACKAGE / name).read_text()]
    assert late == ["masks/text.py"]


@pytest.mark.parametrize("package", [PACKAGE, DECODERS[0].parent], ids=lambda path: path.name)
def test_no_circle_of_files(package):
    """Imports inside functions count; those under TYPE_CHECKING and the lazy façade do not."""
    arrows = {
        str(path.relative_to(package)): {
            file_of(module, package) for module, _ in imported(path, typing=False)
        }
        - {None}
        for path in (FILES if package == PACKAGE else DECODERS)
        if path != PACKAGE / "__init__.py"
    }
    open_files: list[str] = []
    done: set[str] = set()

    def walk(name: str) -> None:
        if name in open_files:
            circle = [*open_files[open_files.index(name) :], name]
            pytest.fail("circle of imports: " + " -> ".join(circle))
        if name in done or name not in arrows:
            return
        open_files.append(name)
        for target in sorted(arrows[name]):
            walk(target)
        open_files.pop()
        done.add(name)

    for name in arrows:
        walk(name)


def test_ray_and_the_attention_interface_have_one_file_each():
    ray, interface = set(), set()
    for name in NAMES:
        for module, _ in imported(PACKAGE / name):
            if module.split(".")[0] == "ray":
                ray.add(name)
            if module.split(".")[-1] in ("AttentionInterface", "AttentionMaskInterface"):
                interface.add(name)
    assert ray == {"executors/ray.py"}
    assert interface == {"attention/interface.py"}


def test_strategies_are_told_apart_in_their_own_room():
    """No branch elsewhere asks for a strategy's name or class: what differs is in its spec."""
    from masksearch.strategies.build import every_spec

    names_known = {*every_spec()}
    branches = []
    for name in NAMES:
        if name.startswith(("strategies/", "gates/")):  # presets of gates have a strategy's name
            continue
        for node in nodes_of(PACKAGE / name):
            match node:
                case ast.Compare():
                    below = ast.walk(node)
                    names = {each.value for each in below if isinstance(each, ast.Constant)}
                    branch = bool(names & names_known)
                case ast.Call(func=ast.Name(id="isinstance")):
                    branch = ast.unparse(node).endswith("Strategy)")
                case _:
                    branch = False
            if branch:
                branches.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert branches == []


@pytest.mark.slow
def test_an_engine_is_named_in_its_file_alone():
    """Docstrings, and transformers, which is a library too, are no names of engines."""
    engines = ("vllm", "sglang", "llama.?cpp", "tensorrt|trtllm")
    named: dict[str, set[str]] = {engine: set() for engine in engines}
    for path in (*FILES, *DECODERS):
        nodes, name = nodes_of(path), str(path.relative_to(PACKAGE.parent))
        docstrings = {
            node.body[0].value
            for node in nodes
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        words = [
            word
            for node in nodes
            if node not in docstrings
            for each in ("id", "attr", "name", "arg", "module", "value")
            if isinstance(word := getattr(node, each, ""), str)
        ]
        for engine in engines:
            if re.search(engine, "\n".join(words), re.IGNORECASE):
                named[engine].add(name)
    outside = {name for names in named.values() for name in names if "/engines/" not in name}
    assert not outside, f"an engine has a file in masksearch_decoders/engines/: {sorted(outside)}"
    assert all(1 < len(names) <= 3 for names in named.values()), named


def test_files_are_named_for_what_they_hold():
    vague = {"utils.py", "base.py", "registry.py", "helpers.py", "common.py"}
    assert not vague & {path.name for path in FILES}


def test_no_class_name_stands_for_two_things():
    """Of the core and the decoders; a mask's columns and those of a table are both the users'."""
    nodes = itertools.chain.from_iterable(map(nodes_of, [*FILES, *DECODERS]))
    names = collections.Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == ["Columns"]


def test_a_function_that_its_file_alone_names_is_marked_private():
    """A name that nothing else in the project has, pages and tests included, begins with an
    underscore, unless a decorator hands it on."""
    tops = ("masksearch*", "search_spaces", "tests", "docs", "experiments", "benchmarks")
    found = [path for top in (*tops, "notebooks", "*.md") for path in PACKAGE.parent.glob(top)]
    found = [each for path in found for each in ([path] if path.is_file() else path.rglob("*"))]
    kinds = {".py", ".md", ".ipynb", ".j2", ".js", ".toml"}
    words = collections.Counter[str]()
    for path in found:
        if path.suffix in kinds and path.is_file():
            words.update({*re.findall(r"[A-Za-z_]\w*", path.read_text("utf-8"))})
    alone = {
        f"{path.name}: {node.name}"
        for path in (*FILES, *DECODERS)
        for node in tree_of(path).body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
        if words[node.name] == 1 and not node.name.startswith("_")
    }
    assert not alone, f"begin these names with an underscore: {sorted(alone)}"


def test_rooms_are_small_enough_to_hold_in_mind():
    loose = [path.name for path in PACKAGE.glob("*.py")]
    assert len(loose) <= 9, f"at most 9 loose files at the top, there are {sorted(loose)}"
    for folder in {path.parent for path in (*FILES, *DECODERS)}:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 20, f"{folder.name} holds {len(files)} files, at most 20"


def test_no_module_shadows_a_public_name():
    import masksearch

    for path in FILES:
        name = path.stem if path.stem != "__init__" else path.parent.name
        parents = path.relative_to(PACKAGE).parts
        public = masksearch.PUBLIC.get(name, "masksearch")  # where a module is itself public
        if len(parents) == 1 and public != "masksearch":
            pytest.fail(f"{parents[0]} would shadow masksearch.{name}")
