"""Masks from text (an expression, a mask file, a run) and their files; short texts of them.

Never evaluates code, and reads no pickle; a mask prints itself.
"""

from __future__ import annotations

import ast
import itertools
import json
import os
import pkgutil
import re
from collections.abc import Callable
from keyword import iskeyword
from pathlib import Path
from typing import Any

from torch import Tensor

from masksearch.errors import MaskFormatError, MaskSearchError, unknown_name
from masksearch.files import object_in, path_inside, write_in_one_move
from masksearch.masks.checks import MOST_NODES
from masksearch.masks.core import RECIPES, Mask, check_mask

LONGEST = 100_000  # characters of an expression
LONGEST_PATH = 4096  # ... and of a place
FILES = (".json", ".safetensors", ".npy")
SAVED = "masksearch.json"  # of a model that was saved with its mask: names the mask's file
BARE = ("...", "per_layer([...])", "per_head([...])")  # short texts that say nothing of a mask
RUN = re.compile(r".[#@][\w.-]+$")  # how the name of a run's mask may end
CUT = re.compile(r"\.\.\.| \[[0-9a-f]{8}\]$|\(\d+( ids|x\d)")  # where a short text leaves some out
QUOTED = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""  # a text among a mask's fields
TIMES = re.compile(rf"{QUOTED}|(\d+\s+)x\b")  # of `3 x full()`: no name follows a number else
# What reads the masks of a run stands right of masks/, which may not import it: it is found by
# its name when a text names a run. tests/test_layers.py holds that this is the only such arrow.
READ_RUN = "masksearch.study.references:read_run_mask"


def functions() -> dict[str, Callable[..., Mask]]:
    """The functions that an expression may call: every kind of mask, and every recipe."""
    return {name: kind for name, kind in Mask.kinds.items() if not iskeyword(name)} | RECIPES


def parse(text: str) -> Mask:
    """Reads an expression such as `"bigbird(2, 1, 2) | window(3)"`, a mask file, or a run.

    An expression is calls of the names of `masksearch.masks` with numbers, lists, strings and
    keywords, combined by `|`, `&`, `-` and `~`. A bare family name means its defaults. Equal
    neighbours in a list may stand once, as they are printed: `per_head([3 x full(), star()])`, or
    as in Python: `per_head([full()] * 3 + [star()])`. Kinds of masks in files of your own are
    known once they are imported.

    As a whole text, it may also be a file that `save_mask` wrote (`"mask.json"`), or a run folder:
    `"runs/x"` is the best mask that its strategy proposed, `"runs/x@0.9"` the best that is at
    least 90 % sparse, and `"runs/x#7"` that of trial 7.

    Raises:
        MaskFormatError: If the text is anything else; says what was found.
        UnknownNameError: If a name is unknown; names the nearest.
        FileNotFoundError: If there is no such file.
        SearchError: If there is no such run, or it has no such mask; says which it has.
        TypeError: If it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"parse reads a text such as 'window(3)', got {text!r}")
    if names_run(text):
        mask: Mask = pkgutil.resolve_name(READ_RUN)(text)
        return mask
    if names_place(text):
        return load_mask(text)
    if len(text) > LONGEST:
        raise MaskFormatError(f"an expression has at most {LONGEST} characters, got {len(text)}")
    try:
        stars = TIMES.sub(lambda found: f"*{found[1]}*" if found[1] else found[0], text.strip())
        tree = ast.parse(stars, mode="eval").body
        if _parts_in(tree) > MOST_NODES:
            raise MaskFormatError(f"a mask that is read has at most {MOST_NODES} parts")
        value = read(tree, stars)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if cut := CUT.search(text):
            reason = f"some of it is left out at {cut[0]!r}; name its file, or its run as RUN#7"
        elif isinstance(error, MaskSearchError):
            raise
        else:
            reason = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
        raise MaskFormatError(f"cannot read the mask {short(text)}: {reason}") from error
    except TypeError as error:
        raise MaskFormatError(f"cannot read the mask {short(text)}: {error}") from error
    if not isinstance(value, Mask):
        raise MaskFormatError(f"{short(text)} is not a mask; write for example 'bigbird(2, 1, 2)'")
    return value


def names_place(text: str) -> bool:
    """Whether a text names a mask file or a run, and is no expression."""
    if text in functions() or not text.isprintable() or len(text) > LONGEST_PATH:
        return False
    if text.endswith(FILES) or RUN.search(text) or ("/" in text and "(" not in text):
        return True
    return os.path.isdir(text)  # noqa: PTH112 (a text that can be no path is no folder either)


def names_run(text: str) -> bool:
    """Whether a text names a run, and is no file and no expression."""
    return names_place(text) and not text.endswith(FILES) and not holds_saved_mask(text)


def holds_saved_mask(folder: Path | str) -> bool:
    """Whether a folder is a model that was saved with its mask."""
    return os.path.isfile(Path(folder, SAVED))  # noqa: PTH113 (nor is any text a path)


def short(text: str) -> str:
    """The text in quotes, its middle left out where it is long."""
    return repr(text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}")


def _parts_in(node: ast.AST) -> int:
    """How many nodes a syntax tree has, repeated ones as often as they are to be read."""
    match node:
        case ast.BinOp(ast.Constant(int(count)), ast.Mult(), part):
            return count * _parts_in(part)
        case ast.BinOp(part, ast.Mult(), ast.Constant(int(count))):
            return count * _parts_in(part)
    return 1 + sum(map(_parts_in, ast.iter_child_nodes(node)))


def read(node: ast.expr, text: str) -> Any:
    """The mask or plain value of one syntax node."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return operand(left, text) | operand(right, text)
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return operand(left, text) & operand(right, text)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return operand(left, text) - operand(right, text)
        case ast.UnaryOp(op=ast.Invert(), operand=inner):
            return ~operand(inner, text)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return value
        case ast.List(items) | ast.Tuple(items):
            values: list[Any] = []
            for item in items:
                value = read(item, text)
                values += value if isinstance(item, ast.Starred) else [value]
            return tuple(values)
        case ast.Starred(ast.BinOp(ast.Constant(int(count)), ast.Mult(), item)):
            return [read(item, text)] * count
        case ast.BinOp(ast.List() as items, ast.Mult(), ast.Constant(int(count))):
            return read(items, text) * count
        case ast.BinOp(ast.List() | ast.BinOp(), ast.Add(), ast.List() | ast.BinOp()):
            return (*read(node.left, text), *read(node.right, text))
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            build = RECIPES.get(name) or (None if iskeyword(name) else Mask.kinds.get(name))
            if build is None:
                raise unknown_name("mask", name, functions())
            arguments = [read(a, text) for a in getattr(node, "args", [])]
            keywords = {}
            for keyword in getattr(node, "keywords", []):
                if keyword.arg is None:
                    raise MaskFormatError("** cannot stand in a mask; write name=value")
                if keyword.arg in keywords:
                    raise MaskFormatError(f"{name} is given {keyword.arg} twice")
                keywords[keyword.arg] = read(keyword.value, text)
            return build(*arguments, **keywords)
    piece = ast.get_source_segment(text.strip(), node) or type(node).__name__
    raise MaskFormatError(
        f"{short(piece)} cannot stand in a mask; "
        "masks are calls such as window(3), combined by | & - ~"
    )


def operand(node: ast.expr, text: str) -> Any:
    """A node that must be a mask."""
    value = read(node, text)
    if not isinstance(value, Mask):
        raise MaskFormatError(f"| & - ~ combine masks, got {value!r}")
    return value


def short_text(mask: Mask | str, width: int = 60) -> str:
    """A mask's expression where there is little room: equal layers and heads stand once, and what
    is still too long is cut between whole operands, never in one.

    Args:
        mask: A mask, or a name or expression.
        width: Most characters (>= 16).

    Returns:
        The expression where it fits, or with equal layers and heads once (`folded`). Else the
        operands that fit, "..." for those that do not (of a list of heads none of which fits, how
        many are full), and the first 8 digits of the mask's digest.

    >>> from masksearch import masks
    >>> short_text(masks.window(3) | masks.stride(5) | masks.offsets(range(40)), 45)
    'window(3) | stride(5) | ... [ac772799]'
    >>> short_text(masks.per_layer([masks.window(3)] * 6) | masks.global_tokens(1), 45)
    'per_layer([6 x window(3)]) | global_tokens(1)'
    >>> short_text(masks.per_head([masks.window(3), masks.bigbird(), masks.star()]), 38)
    'per_head([window(3), ...]) [b458f4c9]'
    >>> short_text(masks.per_layer([masks.per_head([masks.full()] + [masks.star()] * 5)] * 3), 38)
    '3 of 18 heads full [20833d50]'
    """
    text = str(mask)
    if len(text) <= width:
        return text
    if len(short := folded(text)) <= width:
        return short
    end = f" [{mask.digest[:8]}]" if isinstance(mask, Mask) else ""
    short, words = _cut_operands(short, width - len(end)), _heads_in_words(text)
    if words and short in BARE and len(words + end) <= width:
        short = words
    return short + end


def folded(text: str) -> str:
    """An expression in which equal neighbours in a list of layers or heads stand once.

    >>> folded("per_layer([star(), star(), per_head([full(), full()])]) | stride(2)")
    'per_layer([2 x star(), per_head([2 x full()])]) | stride(2)'
    """
    start = re.search(r"\bper_(layer|head)\(\[", bare := _without_texts(text))
    if start is None:
        return text
    depth, end = 1, start.end()
    while depth and end < len(text):
        depth += (bare[end] in "([") - (bare[end] in ")]")
        end += 1
    inside = text[start.end() : end - 1]
    ends = [(0, 0), *outermost(inside, r",\s?"), (len(inside), 0)]
    items = [folded(inside[a:b]) for (_, a), (b, _) in itertools.pairwise(ends)]
    runs = [(len([*group]), item) for item, group in itertools.groupby(items)]
    several = {item: f"({item})" if outermost(item, r" [|&-] ") else item for _, item in runs}
    body = ", ".join(item if count == 1 else f"{count} x {several[item]}" for count, item in runs)
    return f"{text[: start.end()]}{body}{folded(text[end - 1 :])}"


def _heads_in_words(text: str) -> str:
    """How many heads of a mask that tells them apart are full; empty for any other expression.

    >>> _heads_in_words("per_layer([full(), per_head([window(2), full()])])")
    '3 of 4 heads full'
    >>> _heads_in_words("per_head([window(2), star(), window(2)])")
    '2 masks in 3 heads'
    """
    rows = [parts_of(part, "per_head") for part in parts_of(text, "per_layer")]
    most = max(map(len, rows))
    heads = [head for row in rows for head in (row if len(row) > 1 else row * most)]
    full = heads.count("full()")
    words = f"{full} of {len(heads)} heads full" if full else ""
    return (words or f"{len(set(heads))} masks in {len(heads)} heads") if most > 1 else ""


def parts_of(text: str, name: str) -> list[str]:
    """The masks of an expression `name([..])`; of any other, the expression itself."""
    if not (text.startswith(f"{name}([") and text.endswith("])")) or outermost(text, r" [|&-] "):
        return [text]
    inside = text[len(name) + 2 : -2]
    ends = [(0, 0), *outermost(inside, r",\s?"), (len(inside), 0)]
    return [inside[a:b] for (_, a), (b, _) in itertools.pairwise(ends)]


def _cut_operands(text: str, room: int) -> str:
    """An expression of at most `room` characters: its first operands or arguments, then "..."."""
    if len(text) <= room:
        return text
    breaks = outermost(text, r" [|&-] ")
    for _, end in reversed(breaks):
        if end + 3 <= room:
            return text[:end] + "..."
    if breaks:  # the first operand is too long itself
        start, end = breaks[0]
        head = _cut_operands(text[:start], room - (end - start) - 3)
        return "..." if head == "..." else f"{head}{text[start:end]}..."
    call = re.match(r"(?:\d+ x )?[~\w.]*(\(\[|\()", text)
    if call is None:  # a name
        return f"{text[: max(0, room - 3)].rstrip()}..."
    close = {"([": "])", "(": ")"}[call[1]]
    inside = text[call.end() : -len(close)]
    for _, end in reversed(outermost(inside, r",\s?| [|&-] ")):
        if call.end() + end + 3 + len(close) <= room:
            return f"{call[0]}{inside[:end]}...{close}"
    short_call = f"{call[0]}...{close}"
    return short_call if len(short_call) <= room else "..."


def _without_texts(text: str) -> str:
    """As long a text without what is in quotes: its brackets and commas are no expression's."""
    return re.sub(QUOTED, lambda quoted: "_" * len(quoted[0]), text)


def outermost(text: str, pattern: str) -> list[tuple[int, int]]:
    """Where a pattern stands outside of all brackets and quotes: starts and ends."""
    spans, depth = [], 0
    for match in re.finditer(rf"[(\[]|[)\]]|{pattern}", _without_texts(text)):
        if match[0] in "([":
            depth += 1
        elif match[0] in ")]":
            depth -= 1
        elif depth == 0:
            spans.append(match.span())
    return spans


# -- files: JSON, or safetensors where they hold tables ------------------------------------------
def save_mask(mask: Mask, path: Path | str) -> Path:
    """Writes a mask to `.json` (any mask) or `.safetensors` (its tables as tensors).

    The file is written beside its place and moved there, so that a crash leaves no half mask.

    Raises:
        ValueError: If the suffix is another.
        TypeError: If it is no mask.
    """
    check_mask("save_mask", mask)
    path = Path(path)
    with write_in_one_move(path) as beside:
        if path.suffix == ".json":
            beside.write_text(mask.to_json(), encoding="utf-8")
        elif path.suffix == ".safetensors":
            from safetensors.torch import save_file

            tensors: dict[str, Tensor] = {}
            tree = json.dumps(mask.to_dict(tensors))
            save_file(tensors, beside, metadata={"masksearch_mask": tree})
        else:
            raise ValueError(f"a mask is saved as .json or .safetensors, got {path.name!r}")
    return path


def load_mask(path: Path | str) -> Mask:
    """Reads what `save_mask` wrote. Never runs code from the file.

    Args:
        path: A `.json` or `.safetensors` file, or the folder of a model that was saved with one
            mask.

    Raises:
        FileNotFoundError: If there is no such file.
        MaskFormatError: If the file is truncated, foreign or edited.

    >>> import masksearch as ms
    >>> path = ms.save_mask(ms.masks.window(2), "mask.json")
    >>> ms.load_mask(path)
    window(2)
    """
    path = Path(path)
    path = _file_of_saved(path) if holds_saved_mask(path) else path
    tensors: dict[str, Tensor] = {}
    if path.suffix not in (".json", ".safetensors"):
        raise MaskFormatError(
            f"{path}: a mask file ends in .json or .safetensors; for an array of your own take "
            "masks.from_numpy(cells) or masks.from_block_layout(layout, block), for the mask of "
            "a run masks.parse('RUN#7')"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask file")
    if path.suffix == ".json":
        text: str | bytes | None = path.read_bytes()
    else:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                if (count := len(file.keys())) > MOST_NODES:
                    raise MaskFormatError(f"{path}: has {count} tensors, and at most {MOST_NODES}")
                text = (file.metadata() or {}).get("masksearch_mask")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise MaskFormatError(f"{path}: not a readable safetensors file: {error}") from error
    if text is None:
        raise MaskFormatError(f"{path}: holds no mask (no 'masksearch_mask' in its metadata)")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskFormatError(f"{path}: not JSON that can be read: {error}") from error
    try:
        return Mask.from_dict(data, tensors)
    except MaskFormatError as error:
        raise MaskFormatError(f"{path}: {error}") from error


def _file_of_saved(folder: Path) -> Path:
    """The file of the mask that a model was saved with."""
    masks = object_in(folder / SAVED).get("masks")
    files = [each.get("file") for each in masks.values()] if isinstance(masks, dict) else []
    if len(files) != 1:
        raise MaskFormatError(f"{folder}: names {len(files)} masks; give the file of one of them")
    return path_inside(folder, str(files[0]))
