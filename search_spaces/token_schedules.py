"""Fewer tokens in each layer: which kind of them stays, and how many, where [CLS] alone is read.

Of each layer but the first a draw says how many tenths of the tokens before stay, and which: every
k-th, the first ones, or the rarest words of the data; what has left stays out. [SEP] stays with
all or goes with all. What nobody looks at any more is computed no more (`masks.work`,
`attach(.., drop_tokens=True)`), so limit the work, which budgets of pairs do not count.

At most 4.86e7 masks of 6 layers; layers and data are those of the search. Data without known
tokens have no words and no [SEP]: 3,200,000. Holds full, and halves from any layer on.

    masksearch search masksearch.spaces:token_schedules --weights TUNED --adapt none --glue DIR
        --tasks SST-2 --constraint "work <= 0.6" --run runs/live
"""

from functools import cache, reduce
from operator import and_
from typing import Any

from optuna.trial import BaseTrial

from masksearch import Shape, masks
from masksearch.masks.schedules import Ranking, rankings
from masksearch.user_code import shape_of

LAYERS, HEADS, LENGTH = 6, 12, 64  # where no search says them
TENTHS = 10


@cache
def kinds_of(shape: Shape, tokens: Any) -> dict[str, Ranking]:
    """Kind -> order; `tokens` is `shape.tokens`, which no comparison of shapes looks at."""
    return rankings(shape)


def token_schedules(shape: Shape | None = None):
    """The space over the data of a shape; None = the search's."""

    def space(trial: BaseTrial) -> masks.Mask:
        data = shape or shape_of(trial) or Shape(LENGTH, LAYERS, HEADS)
        orders = kinds_of(data, data.tokens)
        kinds = [kind for kind in orders if not orders[kind].special]
        kept = sorted({token for order in orders.values() for token in order.special})
        ends = kept if kept and trial.suggest_categorical("separators", [False, True]) else []
        share, parts, layers = 1.0, dict[str, masks.Mask](), [masks.full()]
        for layer in range(1, data.layers):
            kind = trial.suggest_categorical(f"l{layer}.kind", kinds)
            share *= trial.suggest_int(f"l{layer}.tenths", 1, TENTHS) / TENTHS
            if share < 1:
                parts[kind] = orders[kind].columns(orders[kind].first(share), ends)
            layers.append(reduce(and_, parts.values()) if parts else masks.full())
        return masks.per_layer(layers)

    space.masksearch_source = f"{TENTHS}{shape or ''}"  # for resuming
    return space


space = token_schedules()
