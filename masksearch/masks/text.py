"""Masks as text: `str(mask)` and `parse`, for the command line. Never evaluates code."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masksearch.errors import MaskFormatError, MaskSearchError, unknown_name
from masksearch.masks import families, layouts, tables
from masksearch.masks import leaves as patterns
from masksearch.masks.content import ContentMask, SpecialTokens
from masksearch.masks.content_parts import (
    ContentBoth,
    ContentComplement,
    ContentEither,
    ContentPerHead,
    ContentPerLayer,
    OfPositions,
    content,
)
from masksearch.masks.core import Mask
from masksearch.masks.stacks import Both, Complement, Cropped, Either, PerHead, PerLayer


def toeplitz(bits: Any, signed: bool = False) -> Mask:
    """`masks.toeplitz` from nested lists of 0 and 1."""
    return families.toeplitz(unspelled("toeplitz", bits), signed)


def block_layout(bits: Any, block: int) -> Mask:
    """`masks.block_layout` from nested lists of 0 and 1."""
    return families.block_layout(unspelled("block_layout", bits), block)


def unspelled(name: str, bits: Any) -> Tensor:
    """A bool tensor from nested lists of 0 and 1."""
    rows = np.array(bits)  # ragged lists and masks raise, or become objects
    if rows.dtype.kind not in "bi" or not np.isin(rows, (0, 1)).all():
        raise MaskFormatError(f"{name} takes lists of 0 and 1, got {bits!r}")
    return torch.from_numpy(rows.astype(bool))


FUNCTIONS = {
    name: getattr(families, name)
    for name in (
        "full causal cropped window dilated stride offsets shifts powers_of_two blocks "
        "block_columns columns global_tokens random_keys axial butterfly per_head per_layer "
        "without_diagonal strided fixed log_sparse longformer bigbird star a_shape "
        "vertical_slash special_tokens"
    ).split()
} | {"toeplitz": toeplitz, "block_layout": block_layout}
LONGEST = 100_000  # characters of an expression
SHOWN = 160  # largest number of bits that an expression spells out


def parse(text: str) -> Mask:
    """Reads an expression such as `"bigbird(2, 1, 2) | window(3)"`.

    Calls of the functions of `masksearch.masks` with whole numbers, lists and keywords,
    combined by `|`, `&`, `-` and `~`. A bare family name means its defaults.

    Raises:
        MaskFormatError: If the text is anything else, a content mask too; says what was found.
        UnknownNameError: If a function is unknown; names the nearest.
    """
    mask = any_mask(text)
    if isinstance(mask, ContentMask):
        raise MaskFormatError(
            f"{short(text)} is a content mask, which has cells only where input ids are known: "
            "it is put on a model, masksearch.attach(model, masks.parse_content(...)); here only "
            "masks of positions can stand, so leave special_tokens out"
        )
    return mask


def parse_content(text: str) -> ContentMask:
    """Reads an expression such as `"window(3) | special_tokens(101, 102)"`.

    As `parse`, and with `special_tokens`. What has no such part becomes a content mask that is
    the same in every example.

    Raises:
        MaskFormatError: If the text is anything else; says what was found.
        UnknownNameError: If a function is unknown; names the nearest.
    """
    return content(any_mask(text))


def any_mask(text: str) -> Mask | ContentMask:
    """Reads a mask of positions or a content mask."""
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
    if not isinstance(value, Mask | ContentMask):
        raise MaskFormatError(f"{short(text)} is not a mask; write for example 'bigbird(2, 1, 2)'")
    return value


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
            keywords = {}
            for keyword in getattr(node, "keywords", []):
                if keyword.arg is None:
                    raise MaskFormatError("** cannot stand in a mask; write name=value")
                if keyword.arg in keywords:
                    raise MaskFormatError(f"{name} is given {keyword.arg} twice")
                keywords[keyword.arg] = read(keyword.value, text)
            return FUNCTIONS[name](*arguments, **keywords)
    piece = ast.get_source_segment(text.strip(), node) or type(node).__name__
    raise MaskFormatError(
        f"{short(piece)} cannot stand in a mask; "
        "masks are calls such as window(3), combined by | & - ~"
    )


def operand(node: ast.expr, text: str) -> Any:
    """A node that must be a mask."""
    value = read(node, text)
    if not isinstance(value, Mask | ContentMask):
        raise MaskFormatError(f"| & - ~ combine masks, got {value!r}")
    return value


def expression(mask: Mask) -> str:
    """The shortest expression of a mask; tables show their shape and digest only."""
    family = family_of(mask)
    if family is not None:
        return f"{family}()"
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
        case tables.Table(bits=bits):
            return f"table({'x'.join(map(str, bits.shape))}, {mask.digest[:8]})"
        case tables.Toeplitz(bits=bits, signed=signed):
            if bits.numel() > SHOWN:
                shape = "x".join(map(str, bits.shape))
                return f"toeplitz({shape}{', signed' if signed else ''}, {mask.digest[:8]})"
            return f"toeplitz({spelled(bits)}{', signed=True' if signed else ''})"
        case layouts.BlockLayout(bits=bits, block=block):
            if bits.numel() > SHOWN:
                shape = "x".join(map(str, bits.shape))
                return f"block_layout({shape}, {block}, {mask.digest[:8]})"
            return f"block_layout({spelled(bits)}, {block})"
        case patterns.GlobalTokens(positions=positions) | layouts.Columns(positions=positions):
            if positions == tuple(range(len(positions))):
                return f"{mask.kind}({len(positions)})"
            return f"{mask.kind}(positions={list(positions)})"
    values = [v for k, v in mask.to_dict().items() if k != "kind"]
    return f"{mask.kind}({', '.join(map(str, values))})"


def wrapped(mask: Mask) -> str:
    """An operand; combinations in parentheses."""
    text = expression(mask)
    return f"({text})" if isinstance(mask, Either | Both) and family_of(mask) is None else text


def content_expression(mask: ContentMask) -> str:
    """The shortest expression of a content mask."""
    match mask:
        case SpecialTokens(ids=ids):
            return f"special_tokens({', '.join(map(str, ids))})"
        case OfPositions(of=plain):
            return expression(plain)
        case ContentEither(of=parts):
            return " | ".join(text for part in parts for text in pieces(part, Either))
        case ContentBoth(of=parts):
            first, *rest = (text for part in parts for text in pieces(part, Both))
            return first + "".join(f" - {t[1:]}" if t[0] == "~" else f" & {t}" for t in rest)
        case ContentComplement(of=part):
            return f"~{wrapped_content(part)}"
        case ContentPerHead(of=parts):
            return f"per_head([{', '.join(map(content_expression, parts))}])"
        case ContentPerLayer(of=parts):
            return f"per_layer([{', '.join(map(content_expression, parts))}])"
    raise TypeError(f"{mask.kind} has no expression")


def pieces(part: ContentMask, kind: type[Either] | type[Both]) -> list[str]:
    """Operands of a chain of that kind, each wrapped."""
    if isinstance(part, OfPositions) and isinstance(part.of, kind) and not family_of(part.of):
        return [wrapped(one) for one in part.of.of]
    return [wrapped_content(part)]


def wrapped_content(mask: ContentMask) -> str:
    """An operand; combinations in parentheses."""
    if isinstance(mask, OfPositions):
        return wrapped(mask.of)
    text = content_expression(mask)
    return f"({text})" if isinstance(mask, ContentEither | ContentBoth) else text


def family_of(mask: Mask) -> str | None:
    """Name of the hand-designed family that has exactly this expression."""
    return next((name for name, known in families.FAMILIES.items() if known == mask), None)


def spelled(bits: Tensor) -> str:
    """Nested lists of 0 and 1 without spaces."""
    return str(bits.int().tolist()).replace(" ", "")
