"""Masks as text: `str(mask)` and `parse`, for the command line. Never evaluates code."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import Tensor

from masksearch.errors import MaskFormatError, MaskSearchError, unknown_name
from masksearch.masks import families, patterns
from masksearch.masks.core import Both, Complement, Cropped, Either, Mask, PerHead, PerLayer

FUNCTIONS = {
    name: getattr(families, name)
    for name in (
        "full causal cropped window dilated stride offsets shifts powers_of_two blocks block_columns "
        "global_tokens random_keys toeplitz per_head per_layer without_diagonal strided fixed "
        "log_sparse longformer bigbird star"
    ).split()
}
LONGEST = 100_000  # characters of an expression
SHOWN = 160  # largest number of bits that an expression spells out


def parse(text: str) -> Mask:
    """Reads an expression such as `"bigbird(2, 1, 2) | window(3)"`.

    Calls of the functions of `masksearch.masks` with whole numbers, lists and keywords,
    combined by `|`, `&`, `-` and `~`. A bare family name means its defaults.

    Raises:
        MaskFormatError: If the text is anything else; says what was found.
        UnknownNameError: If a function is unknown; names the nearest.
    """
    if len(text) > LONGEST:
        raise MaskFormatError(f"an expression has at most {LONGEST} characters, got {len(text)}")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        value = read(node, text)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, MaskSearchError):
            raise
        reason = getattr(error, "msg", None) or str(error)
        raise MaskFormatError(f"cannot read the mask {text!r}: {reason}") from error
    except TypeError as error:
        raise MaskFormatError(f"cannot read the mask {text!r}: {error}") from error
    if not isinstance(value, Mask):
        raise MaskFormatError(f"{text!r} is not a mask; write for example 'bigbird(2, 1, 2)'")
    return value


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
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
        case ast.Constant(value=bool() | int() as value):
            return value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [read(item, text) for item in items]
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            if name not in FUNCTIONS:
                raise unknown_name("mask", name, FUNCTIONS)
            arguments = [read(a, text) for a in getattr(node, "args", [])]
            keywords = {k.arg: read(k.value, text) for k in getattr(node, "keywords", []) if k.arg}
            if name == "toeplitz" and arguments:
                arguments[0] = torch.tensor(arguments[0], dtype=torch.bool)
            return FUNCTIONS[name](*arguments, **keywords)
    piece = ast.get_source_segment(text.strip(), node) or type(node).__name__
    raise MaskFormatError(
        f"{piece!r} cannot stand in a mask; masks are calls such as window(3), combined by | & - ~"
    )


def operand(node: ast.expr, text: str) -> Mask:
    """A node that must be a mask."""
    value = read(node, text)
    if not isinstance(value, Mask):
        raise MaskFormatError(f"| & - ~ combine masks, got {value!r}")
    return value


def expression(mask: Mask) -> str:
    """The shortest expression of a mask; tables show their shape and digest only."""
    for name, family in families.FAMILIES.items():
        if mask.digest == family.digest:
            return f"{name}()"
    match mask:
        case Either(of=parts):
            return " | ".join(wrapped(part) for part in parts)
        case Both(of=parts):
            first, *rest = parts
            return wrapped(first) + "".join(
                f" - {wrapped(p.of)}" if isinstance(p, Complement) else f" & {wrapped(p)}"
                for p in rest
            )
        case Complement(of=part):
            return f"~{wrapped(part)}"
        case PerHead(of=parts) | PerLayer(of=parts):
            return f"{mask.kind}([{', '.join(map(expression, parts))}])"
        case Cropped(of=part, at=at):
            return f"cropped({expression(part)}, {at})"
        case patterns.Table(bits=bits):
            return f"table({'x'.join(map(str, bits.shape))}, {mask.digest[:8]})"
        case patterns.Toeplitz(bits=bits, signed=signed):
            if bits.numel() > SHOWN:
                shape = "x".join(map(str, bits.shape))
                return f"toeplitz({shape}{', signed' if signed else ''}, {mask.digest[:8]})"
            return f"toeplitz({spelled(bits)}{', signed=True' if signed else ''})"
        case patterns.GlobalTokens(positions=positions):
            if positions == tuple(range(len(positions))):
                return f"global_tokens({len(positions)})"
            return f"global_tokens(positions={list(positions)})"
    values = [v for k, v in mask.to_dict().items() if k != "kind"]
    return f"{mask.kind}({', '.join(map(str, values))})"


def wrapped(mask: Mask) -> str:
    """An operand; combinations in parentheses."""
    text = expression(mask)
    return f"({text})" if isinstance(mask, Either | Both) and not text.endswith("()") else text


def spelled(bits: Tensor) -> str:
    """Nested lists of 0 and 1 without spaces."""
    return str(bits.int().tolist()).replace(" ", "")
