"""A family per head and layer, each with its own parameters: the largest space, and conditional.

3.9e21 parameter combinations for two layers of four heads (fewer masks, because families
overlap). Every head of every layer picks one of twelve families and then that family's numbers;
every head keeps the diagonal, and 0 to 2 global tokens are shared by all, so no row is empty.
Holds all six families of masksearch.masks.FAMILIES, in all heads or mixed.

    masksearch search masksearch.spaces:head_families --trials 100 --size tiny --run runs/fam
"""

from collections.abc import Callable

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS, HEADS = 2, 4  # of the encoder that is searched
Number = Callable[[str, int, int], int]  # (name, lowest, highest) -> the drawn number
FAMILIES: dict[str, Callable[[Number], masks.Mask]] = {
    "window": lambda number: masks.window(number("reach", 0, 16)),
    "dilated": lambda number: dilated(number("keys", 1, 8), number("gap", 2, 8)),
    "shift": lambda number: masks.shifts([number("step", -8, 8)]),
    "stride": lambda number: masks.stride(number("period", 2, 16)),
    "strided": lambda number: masks.strided(number("period", 2, 16)),
    "columns": lambda number: masks.block_columns(number("size", 2, 16), number("last", 1, 2)),
    "fixed": lambda number: masks.fixed(number("size", 2, 16), number("last", 1, 2)),
    "blocks": lambda number: masks.blocks(number("size", 2, 32)),
    "log_sparse": lambda number: masks.log_sparse(),
    "global": lambda number: masks.global_tokens(number("count", 1, 4)),
    "random": lambda number: masks.random_keys(number("keys", 1, 4), number("seed", 0, 9)),
    "bigbird": lambda number: masks.bigbird(
        number("reach", 1, 3), number("count", 1, 2), number("keys", 1, 3), number("seed", 0, 9)
    ),
}


def space(trial: BaseTrial) -> masks.Mask:
    """One family for each head of each layer, with the diagonal and shared global tokens."""
    mask = masks.per_layer(
        masks.per_head(drawn(trial, f"l{layer}.h{head}") for head in range(HEADS))
        for layer in range(LAYERS)
    )
    mask = mask | masks.window(0)
    hubs = trial.suggest_int("hubs", 0, 2)
    return mask | masks.global_tokens(hubs) if hubs else mask


def drawn(trial: BaseTrial, head: str) -> masks.Mask:
    """The mask of one head; a parameter carries its family's name, so that none are mixed up."""
    family = trial.suggest_categorical(f"{head}.family", list(FAMILIES))
    place = f"{head}.{family}"
    return FAMILIES[family](
        lambda name, low, high: trial.suggest_int(f"{place}.{name}", low, high)
    )


def dilated(keys: int, gap: int) -> masks.Mask:
    """A window of `keys` keys on each side, `gap` positions apart."""
    return masks.dilated(keys * gap, gap)
