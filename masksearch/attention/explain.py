"""Names the kernel of each layer of a model with a mask on it, and the reason."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from masksearch.attention.attach import in_force
from masksearch.attention.kernels.choose import BLOCK, KernelChoice, gather_pays_from
from masksearch.attention.kernels.flex import block_on
from masksearch.attention.kernels.plan import computed_type
from masksearch.attention.layer import LayerMask, LayerState
from masksearch.errors import AttachError, LengthError
from masksearch.masks.checks import check_length
from masksearch.masks.core import Mask
from masksearch.masks.leaves import Causal

COLUMNS = 100  # of the printed table
HEADS = ("part", "layers", "mask", "length", "kept", "blocks", "backend")
WIDEST = (12, 12, 38, 6, 6, 6, 7)  # of the columns; with two spaces between them, less than 100
GATES = "trainable gates take part in dense attention; the mask that they give can be faster"
TOKENS = "a mask that follows the tokens is another one in each batch: SDPA with a mask"
CROSS = "cross-attention: SDPA with a mask"
BIASED = "the model adds a bias to the scores: SDPA with a mask"


@dataclass(frozen=True)
class ExplainedLayers:
    """Layers of one part that are computed alike.

    Args:
        part: As in `attach`; `"self"` for a plain model.
        layers: Their indices within the part, such as `"0-11"`.
        names: Their modules' qualified names.
        mask: The mask's expression, or `"gates"`.
        length: Positions; None where it makes no difference.
        density: Kept share of the n x n table, in [0, 1]; None where it is not fixed.
        block_density: Share of the device's blocks that hold a kept cell; likewise.
        backend: `"dense"`, `"sdpa"`, `"gather"`, `"flex"` or `"gates"`.
        reason: Why.
    """

    part: str
    layers: str
    names: tuple[str, ...]
    mask: str
    length: int | None
    density: float | None
    block_density: float | None
    backend: str
    reason: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The printed row."""
        shares = (
            "" if share is None else f"{100 * share:.3g}%"
            for share in (self.density, self.block_density)
        )
        length = "any" if self.length is None else str(self.length)
        return (self.part, self.layers, self.mask, length, *shares, self.backend)


@dataclass(frozen=True)
class Explanation:
    """The kernel of each layer; `str()` is a table of at most 100 columns.

    Args:
        title: Model, device, and whether a gradient is asked for.
        rows: One for layers that are computed alike, at one length.
        notes: What follows from the rows, each thing once.
    """

    title: str
    rows: tuple[ExplainedLayers, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        table = [
            [cell if len(cell) <= most else cell[: most - 2] + ".." for cell, most in pairs]
            for pairs in (
                zip(cells, WIDEST, strict=True)
                for cells in (HEADS, *(row.cells for row in self.rows))
            )
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [wrapped(self.title)]
        reasons = ["", *(row.reason for row in self.rows)]
        for reason, after, cells in zip(reasons, [*reasons[1:], ""], table, strict=True):
            padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
            lines += [wrapped(reason, "    ")] if reason and reason != after else []  # said once
        return "\n".join([*lines, *map(wrapped, self.notes)])


def explain(
    model: nn.Module, length: int | None = None, trains: bool | None = None
) -> Explanation:
    """Names the kernel of each layer of a model with a mask or gates attached, and the reason.

    Args:
        model: As `attach` was given it.
        length: Positions of queries and keys; None = each length that the model has been run
            at, or else the only one that its masks have.
        trains: Whether a gradient is asked for; None = as the model stands, in training or in
            evaluation mode.

    Returns:
        An explanation to print; `.rows` holds the same as data. Where a call was not computed
        as chosen, because keys came from a cache for example, the last such call is named.

    Raises:
        AttachError: If nothing is attached to this model, or other attention is in use.
        ValueError: If the length is no whole number >= 1, or none is given and none is known.
        LengthError: If a mask is shorter.

    >>> import masksearch as ms
    >>> from transformers import BertConfig, BertModel
    >>> small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> bert = BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small))
    >>> explanation = ms.explain(ms.attach(bert, ms.masks.window(2)), length=16)  # to print
    >>> explanation.rows[0].backend
    'sdpa'
    """
    attachment = in_force(model)
    if attachment is None:
        raise AttachError(
            f"nothing is attached to this {type(model).__name__}; ms.attach(model, mask) first, "
            "and explain the same module that attach was given"
        )
    if length is not None:
        check_length(length)
    trains = model.training if trains is None else trains
    states = list(attachment.states.values())
    lengths = [int(length)] if length is not None else _known_lengths(model, states)
    weight = next(model.parameters())
    device, dtype = weight.device, computed_type(weight.device, weight.dtype)
    rows: list[ExplainedLayers] = []
    notes: dict[str, dict[str, None]] = {}  # what is said -> of which masks
    for at in lengths:
        choices: dict[LayerMask, KernelChoice] = {}
        for state in states:
            if state.lowered is not None and state.lowered not in choices:
                choice = state.lowered.choose(at, device, trains, dtype)
                choices[state.lowered] = choice
                if note := _note_length(state.lowered, choice, device):
                    notes.setdefault(note, {})[str(state.lowered.given)] = None
            rows.append(_explain_layer(state, choices))
    block = block_on(device, BLOCK)
    title = (
        f"{type(model).__name__} on {device}, {'forward and backward' if trains else 'forward'}"
        f"; kept and blocks: share of the cells, and of the {block} x {block} blocks"
    )
    lines = (
        f"{min(of) if len(of) == 1 else f'these {len(of)} masks'}: {note}"
        for note, of in notes.items()
    )
    dropping = attachment.dropping
    left_out = [] if dropping is None else dropping.explain(lengths)
    return Explanation(title, tuple(_group_layers(rows)), (*lines, *left_out))


def _known_lengths(model: nn.Module, states: list[LayerState]) -> list[int]:
    """Lengths that the model has been run at, else the only one that its masks have."""
    run = {n for state in states if state.lowered is not None for n in state.lowered.lowered}
    fixed = {state.mask.length for state in states if isinstance(state.mask, Mask)}
    if lengths := run or {size for size in fixed if size is not None}:
        return sorted(lengths)
    if all(state.lowered is None for state in states):
        return [0]  # neither gates nor masks that follow the tokens depend on it
    raise ValueError(
        f"this {type(model).__name__} has not been run yet, and its masks serve any length; "
        "say which: ms.explain(model, length=512)"
    )


def _explain_layer(state: LayerState, choices: dict[LayerMask, KernelChoice]) -> ExplainedLayers:
    """The row of one layer."""
    mask = "gates" if state.mask is None else str(state.mask)
    first = (state.part, str(state.layer), (state.name,), mask)
    if state.lowered is None and state.mask is None:
        return ExplainedLayers(*first, None, None, None, "gates", GATES)
    if state.lowered is None:
        return ExplainedLayers(*first, None, None, None, "sdpa", TOKENS)
    choice = choices[state.lowered]
    reason = choice.reason
    if choice.backend != "dense" and not state.lowered.plain:
        reason = CROSS if state.cross else BIASED
    elif state.fallback:
        reason += f" (in the last call: {state.fallback})"
    if state.mask is not None and choice.length < (state.mask.length or 0):
        reason = f"upper left corner of a table of {state.mask.length} positions; {reason}"
    shares = (choice.density, choice.block_density)
    return ExplainedLayers(*first, choice.length, *shares, choice.backend, reason)


def _group_layers(rows: list[ExplainedLayers]) -> Iterator[ExplainedLayers]:
    """One row for layers that differ in nothing else."""
    groups: dict[ExplainedLayers, list[ExplainedLayers]] = {}
    for row in rows:
        groups.setdefault(replace(row, layers="", names=()), []).append(row)
    for common, several in groups.items():
        names = tuple(name for row in several for name in row.names)
        yield replace(common, layers=ranges(int(row.layers) for row in several), names=names)


def _note_length(lowered: LayerMask, choice: KernelChoice, device: torch.device) -> str:
    """From which length on `"auto"` takes block gather, where SDPA computes now; empty where
    there is nothing to say."""
    if choice.backend != "sdpa" or device.type != "cpu" or not lowered.plain:
        return ""
    try:
        mask = lowered.given
        least = gather_pays_from(mask & Causal() if lowered.causal else mask)
    except LengthError:
        return ""
    if least is None:
        return "nothing sparse pays, at any length."
    if least > choice.length:
        return f"block gather pays from about {least} positions on."
    return 'backend="auto" would take block gather.'


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,6` of 0, 1, 2, 3, 6."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs)


def wrapped(text: str, indent: str = "") -> str:
    """The text in lines of at most 100 columns."""
    return textwrap.fill(text, COLUMNS, initial_indent=indent, subsequent_indent=indent or "  ")
