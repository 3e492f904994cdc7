"""Masks from text, for the command line. Never evaluates code; a mask prints itself."""

from __future__ import annotations

import ast
from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from masksearch.errors import MaskFormatError, MaskSearchError, unknown_name
from masksearch.masks.core import RECIPES, Mask

LONGEST = 100_000  # characters of an expression


def functions() -> dict[str, Callable[..., Mask]]:
    """What an expression may call: every kind of mask, and every recipe."""
    return {name: kind for name, kind in Mask.kinds.items() if not iskeyword(name)} | RECIPES


def parse(text: str) -> Mask:
    """Reads an expression such as `"bigbird(2, 1, 2) | window(3)"`.

    Calls of the names of `masksearch.masks` with numbers, lists, strings and keywords, combined
    by `|`, `&`, `-` and `~`. A bare family name means its defaults. Kinds of masks in files of
    your own are known once they are imported.

    Raises:
        MaskFormatError: If the text is anything else; says what was found.
        UnknownNameError: If a name is unknown; names the nearest.
    """
    if len(text) > LONGEST:
        raise MaskFormatError(f"an expression has at most {LONGEST} characters, got {len(text)}")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        value = read(node, text)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, MaskSearchError):
            raise
        reason = getattr(error, "msg", None) or str(error) or "it is nested too deeply"
        raise MaskFormatError(f"cannot read the mask {short(text)}: {reason}") from error
    except TypeError as error:
        raise MaskFormatError(f"cannot read the mask {short(text)}: {error}") from error
    if not isinstance(value, Mask):
        raise MaskFormatError(f"{short(text)} is not a mask; write for example 'bigbird(2, 1, 2)'")
    return value


def parse_content(text: str) -> Mask:
    """The same as `parse`, which once did not read `special_tokens`."""
    return parse(text)


def short(text: str) -> str:
    """The text in quotes, its middle left out where it is long."""
    return repr(text if len(text) <= 80 else f"{text[:40]}...{text[-37:]}")


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
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [read(item, text) for item in items]
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            known = functions()
            if name not in known:
                raise unknown_name("mask", name, known)
            arguments = [read(a, text) for a in getattr(node, "args", [])]
            keywords = {}
            for keyword in getattr(node, "keywords", []):
                if keyword.arg is None:
                    raise MaskFormatError("** cannot stand in a mask; write name=value")
                if keyword.arg in keywords:
                    raise MaskFormatError(f"{name} is given {keyword.arg} twice")
                keywords[keyword.arg] = read(keyword.value, text)
            return known[name](*arguments, **keywords)
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
