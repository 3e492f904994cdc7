"""What computes the attention of a model with a mask on it, layer by layer, and why."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import nn

from masksearch.attention.in_force import in_force
from masksearch.attention.kernels.choose import Choice, choose, gather_pays_from
from masksearch.attention.lowered import Lowered
from masksearch.attention.slots import Slot
from masksearch.errors import AttachError, LengthError
from masksearch.masks.core import Mask

COLUMNS = 100  # of the printed table
GATES = "trainable gates take part in dense attention; the mask that they give can be faster"
CONTENT = "a mask by content is another one in each batch: SDPA with a mask"
CROSS = "cross-attention: SDPA with a mask"
BIASED = "the model adds a bias to the scores: SDPA with a mask"
FASTEST = (
    'For many forward passes at one length, attach with backend="fastest": it times all kernels '
    "once, FlexAttention too, which compiles for seconds."
)
WORTH_COMPILING = 1024  # positions
HEADS = ("part", "layers", "mask", "length", "kept", "blocks", "backend", "speed")


@dataclass(frozen=True)
class Row:
    """Layers of one part that are computed alike.

    Args:
        part: As in `attach`; `"self"` for a plain model.
        layers: Their indices within the part, such as `"0-11"`.
        names: Their modules' qualified names.
        mask: The mask's expression, or `"gates"`.
        length: Positions; None where it makes no difference.
        density: Kept share of the n x n table, in [0, 1]; None where it is not fixed.
        block_density: Share of the 64 x 64 tiles that hold a kept cell; likewise.
        backend: `"dense"`, `"sdpa"`, `"gather"`, `"flex"` or `"gates"`.
        reason: Why.
        ratio: Expected time of the same attention without our mask over this one's: 2 is twice
            as fast, 0.8 is slower; None where no figure is known.
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
    ratio: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The printed row."""
        return (
            self.part,
            self.layers,
            self.mask,
            "any" if self.length is None else f"{self.length}",
            percent(self.density),
            percent(self.block_density),
            self.backend,
            "" if self.ratio is None else f"{self.ratio:.2g}x",
        )


@dataclass(frozen=True)
class Explanation:
    """What computes each layer; `str()` is a table of at most 100 columns.

    Args:
        title: Model, device, and whether a gradient is asked for.
        rows: One for layers that are computed alike, at one length.
        notes: What follows from the rows.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        table = [HEADS, *(row.cells for row in self.rows)]
        widths = [max(len(cells[at]) for cells in table) for at in range(len(HEADS))]
        for at in (2, 0, 1):  # long expressions, dotted names, many ranges
            spare = COLUMNS - sum(widths) - 2 * (len(widths) - 1)
            widths[at] = max(min(widths[at], 12), widths[at] + min(0, spare))
        lines = wrapped(self.title, "")
        for number, cells in enumerate(table):
            shown = [fitted(cell, width) for cell, width in zip(cells, widths, strict=True)]
            aligned = (
                cell.ljust(width) if at < 3 or at == 6 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(shown, widths, strict=True))
            )
            lines.append("  ".join(aligned).rstrip())
            if number:
                lines += wrapped(self.rows[number - 1].reason, "    ")
        return "\n".join([*lines, *(line for note in self.notes for line in wrapped(note, ""))])


def explain(
    model: nn.Module, length: int | None = None, trains: bool | None = None
) -> Explanation:
    """What computes the attention of a model that a mask or gates are attached to, and why.

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
        LengthError: If a mask has another length.
    """
    attachment = in_force(model)
    if attachment is None:
        raise AttachError(
            f"nothing is attached to this {type(model).__name__}; ms.attach(model, mask) first, "
            "and explain the same module that attach was given"
        )
    if length is not None and (isinstance(length, bool) or not isinstance(length, Integral)):
        raise ValueError(f"length must be a whole number of positions, got {length!r}")
    if length is not None and length < 1:
        raise ValueError(f"length must be at least 1 position, got {length}")
    trains = model.training if trains is None else trains
    slots = list(attachment.slots.values())
    lengths = [int(length)] if length is not None else known_lengths(model, slots)
    device = next(model.parameters()).device
    found: list[tuple[Slot, Row]] = []
    notes: list[str] = []
    made: dict[tuple[int, int], Choice] = {}
    for at in lengths:
        for slot in slots:
            if slot.lowered is None:
                found.append((slot, without_choice(slot)))
                continue
            key = (id(slot.lowered), at)
            if key not in made:
                made[key] = chosen(slot, slot.lowered, at, device, trains)
                notes += noted(slot.lowered, made[key], device, trains)
            found.append((slot, with_choice(slot, made[key])))
    title = (
        f"{type(model).__name__} on {device}, {'forward and backward' if trains else 'forward'}"
        "; kept and blocks: share of the cells, and of the 64 x 64 blocks"
    )
    return Explanation(title, tuple(grouped(found)), tuple(dict.fromkeys(notes)))


def known_lengths(model: nn.Module, slots: list[Slot]) -> list[int]:
    """Lengths that the model has been run at, else the only one that its masks have."""
    run = {key[0] for slot in slots for key in slot.choices}
    run |= {key[0] for slot in slots for key in slot.tables}
    own = {slot.mask.length for slot in slots if isinstance(slot.mask, Mask)}
    if found := run or {size for size in own if size is not None}:
        return sorted(found)
    if all(slot.lowered is None for slot in slots):
        return [0]  # gates and masks by content: nothing depends on it
    raise ValueError(
        f"this {type(model).__name__} has not been run yet, and its masks serve any length; "
        "say which: ms.explain(model, length=512)"
    )


def chosen(
    slot: Slot, lowered: Lowered, length: int, device: torch.device, trains: bool
) -> Choice:
    """What computes a layer, without a trace in what it has been run at."""
    if lowered.plain:
        if (length, device, trains) in lowered.choices:
            return lowered.choices[length, device, trains]
        return copy.copy(lowered).choice(length, device, trains)
    made = choose(
        lowered.seen,
        length,
        heads=lowered.heads,
        width=lowered.width,
        device=device,
        trains=trains,
        requested="sdpa",
    )
    if made.backend == "dense":
        return made
    reason = CROSS if slot.cross else BIASED
    return Choice("sdpa", reason, length, made.density, made.block_density, made.ratio)


def with_choice(slot: Slot, choice: Choice) -> Row:
    """The row of one layer with a mask."""
    reason = choice.reason
    plain = slot.lowered is not None and slot.lowered.plain
    if slot.fallback and plain:
        reason += f" (in the last call: {slot.fallback})"
    ratio = choice.ratio
    expected = choice.backend != "dense" and not choice.measured
    if slot.causal and ratio is not None and expected:
        ratio *= causal_share(choice.length)
    return Row(
        slot.part,
        str(slot.layer),
        (slot.name,),
        str(slot.mask),
        choice.length,
        choice.density,
        choice.block_density,
        choice.backend,
        reason,
        ratio,
    )


def causal_share(length: int) -> float:
    """Time of causal SDPA without a mask over SDPA of all pairs: it skips tiles of 512 keys."""
    return min(1, 0.5 + 256 / length)


def without_choice(slot: Slot) -> Row:
    """The row of one layer with gates, or with a mask by content."""
    gates = slot.mask is None
    return Row(
        slot.part,
        str(slot.layer),
        (slot.name,),
        "gates" if gates else str(slot.mask),
        None,
        None,
        None,
        "gates" if gates else "sdpa",
        GATES if gates else CONTENT,
        None,
    )


def grouped(found: list[tuple[Slot, Row]]) -> Iterator[Row]:
    """One row for layers that differ in nothing else."""
    groups: dict[tuple[object, ...], list[tuple[Slot, Row]]] = {}
    for slot, row in found:
        key = (row.part, row.mask, row.length, row.backend, row.reason)
        groups.setdefault(key, []).append((slot, row))
    for several in groups.values():
        first = several[0][1]
        layers = ranges(slot.layer for slot, _ in several)
        names = tuple(name for _, row in several for name in row.names)
        yield Row(first.part, layers, names, *first_fields(first))


def first_fields(
    row: Row,
) -> tuple[str, int | None, float | None, float | None, str, str, float | None]:
    """What the rows of a group have in common."""
    shares = (row.density, row.block_density)
    return (row.mask, row.length, *shares, row.backend, row.reason, row.ratio)


def noted(lowered: Lowered, choice: Choice, device: torch.device, trains: bool) -> Iterator[str]:
    """What follows from a choice, for the reader of the table."""
    auto = choice.backend == "gather" and lowered.backend == "auto"
    if auto and device.type == "cpu" and not trains and choice.length >= WORTH_COMPILING:
        yield FASTEST
    if choice.backend != "sdpa" or device.type != "cpu" or choice.ratio is None:
        return
    skips = lowered.causal and not choice.measured
    ratio = choice.ratio * (causal_share(choice.length) if skips else 1)
    cost = f"{lowered.mask}: a mask on SDPA costs {1 / ratio:.1f}x of dense attention"
    where = f" at {choice.length} positions on the CPU"
    if not lowered.plain:
        yield f"{cost}{where}."
        return
    try:
        least = gather_pays_from(lowered.seen, lowered.heads, lowered.width, trains)
    except LengthError:
        least = None
    if least is None:
        yield f"{cost}{where}; nothing sparse pays for this mask."
    elif least > choice.length:
        yield f"{cost}{where}; nothing sparse pays below about {least} positions."
    else:
        yield f'{cost}{where}; backend="auto" would take block gather.'


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,6` of 0, 1, 2, 3, 6."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in found)


def percent(share: float | None) -> str:
    """A share as the table shows it."""
    return "" if share is None else f"{100 * share:.3g}%"


def fitted(text: str, width: int) -> str:
    """At most that many columns."""
    return text if len(text) <= width else text[: width - 2] + ".."


def wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most 100 columns."""
    return textwrap.wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent or "  ")
