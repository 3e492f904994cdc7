"""Changes the code in small ways, one at a time, and counts how many of them the tests catch.

    python tests/tools/mutants.py masksearch/gates/dam.py --count 20 --tests tests/gates

Run it before and after tests are shortened: a seed makes the same mutants of the same code, so a
count that falls says that they catch less. It changes a temporary copy of the tree alone.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = (".git", ".venv", ".*_cache", "build", "runs")
LARGE = ("torch", "transformers", "optuna", "scipy.stats", "pandas", "hypothesis", "pytest")
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, In NotIn, Is IsNot, And Or, Add Sub, Mult Div, FloorDiv Mod"
SWAPS = {pair[way]: pair[1 - way] for pair in map(str.split, PAIRS.split(",")) for way in (0, 1)}


def changed(node: ast.expr) -> ast.expr | None:
    """The expression with one thing wrong; None where there is nothing to change."""
    match wrong := copy.deepcopy(node):
        case ast.Compare(ops=[op, *_]) if type(op).__name__ in SWAPS:
            wrong.ops[0] = getattr(ast, SWAPS[type(op).__name__])()
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op).__name__ in SWAPS:
            wrong.op = getattr(ast, SWAPS[type(op).__name__])()
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            return wrong.operand
        case ast.Constant(value=bool() | int() | float() as value):
            wrong.value = not value if isinstance(value, bool) else value + 1
        case _:
            wrong = None
    return wrong


def mutants(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Expressions, each with a wrong one: operators, constants, conditions, values returned."""
    if isinstance(tree, ast.If | ast.IfExp | ast.While):
        yield tree.test, f"not ({ast.unparse(tree.test)})"
    if isinstance(tree, ast.Return) and tree.value is not None:
        yield tree.value, "None"
    if isinstance(tree, ast.expr) and (wrong := changed(tree)):
        yield tree, ast.unparse(wrong)
    for name, child in ast.iter_fields(tree):
        for each in child if isinstance(child, list) else [child]:
            typed = name in ("annotation", "returns") or isinstance(each, ast.JoinedStr)
            if isinstance(each, ast.AST) and not typed:
                yield from mutants(each)


def read(place: str) -> Iterator[tuple[Path, ast.expr, str, bytes]]:
    """All mutants of `FILE.py`, or of its function or class `FILE.py:NAME`, each a whole text."""
    file, _, name = place.partition(":")
    lines = (path := Path(file)).read_bytes().splitlines(keepends=True)
    whole = ast.parse(b"".join(lines))
    for tree in [n for n in ast.walk(whole) if getattr(n, "name", None) == name] or [whole]:
        for node, wrong in mutants(tree):
            before = [*lines[: node.lineno - 1], lines[node.lineno - 1][: node.col_offset]]
            after = [lines[node.end_lineno - 1][node.end_col_offset :], *lines[node.end_lineno :]]
            yield path, node, wrong, b"".join([*before, f"({wrong})".encode(), *after])


def judge(place: Path, tests: list[str], seconds: int) -> str:
    """The test that fails first, or how else the run ends; nothing where all tests pass."""
    if (child := os.fork()) == 0:
        os.setsid()
        os.chdir(place)
        signal.alarm(seconds)
        os.dup2(os.open("mutant.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os._exit(sys.modules["pytest"].main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    os.killpg(child, signal.SIGKILL)  # what the tests left running
    status = os.waitpid(child, 0)[1]
    said = (place / "mutant.log").read_text("utf-8", "replace")
    first = re.search(r"^(?:FAILED|ERROR) \S+", said, re.M)
    return "" if status == 0 else first[0] if first else f"status {status}"


def main() -> None:
    """Prints each mutant with the test that catches it first."""
    parser = argparse.ArgumentParser(description="Which small errors do the tests catch?")
    parser.add_argument("sources", nargs="+", metavar="FILE.py[:FUNCTION or CLASS]")
    parser.add_argument("--count", type=int, default=20, help="mutants that the seed chooses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=600, help="the limit of a run of the tests")
    parser.add_argument("--tests", nargs="+", required=True, help="paths")
    options = parser.parse_args()
    every = [mutant for place in options.sources for mutant in read(place)]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    list(map(importlib.import_module, LARGE))
    with tempfile.TemporaryDirectory() as folder:
        place, caught = Path(folder) / "tree", 0
        shutil.copytree(".", place, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        sys.path[:0] = [str(place), *map(str, place.glob("masksearch-*"))]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:3])
        if failed := judge(place, options.tests, options.seconds):
            sys.exit(f"without a mutant: {failed}")
        for number, (path, node, wrong, text) in enumerate(chosen):
            (place / path).write_bytes(text)
            os.utime(place / path, (number, number))  # so that Python sees another text
            near = Path("tests").rglob(f"test_{path.stem}.py")  # tried first
            by = judge(place, [*map(str, near), *options.tests], options.seconds)
            shutil.copy2(path, place / path)
            caught += bool(by)
            print(f"{path}:{node.lineno}: {ast.unparse(node)} -> {wrong}:", by or "-", flush=True)
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
