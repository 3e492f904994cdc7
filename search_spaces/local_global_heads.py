"""Which KV heads of a decoder keep full attention; the others see a few sinks and a window.

The query heads that share keys and values go together, so that a cache could free keys. 2^24 - 1
sets of local KV heads times 6 windows and 4 numbers of sinks, and all of them full: 4.0e8 masks
for 6 layers of 8 heads with 4 KV heads (set the constants, or call `space_of`). A KV head is full
where its number in [0, 1] lies below `share`, so random draws have 0, 1, .. 24 equally often.

    masksearch search search_spaces/local_global_heads.py:space --decoder TEXT --weights MODEL
"""

from collections.abc import Callable

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS, HEADS, KV_HEADS = 6, 8, 4  # of the decoder that is searched
REACHES = [7, 15, 31, 63, 127, 255]  # keys before the query's own
SINKS = [0, 1, 4, 16]  # first positions, which all later ones see


def space_of(layers: int, heads: int, kv_heads: int) -> Callable[[BaseTrial], masks.Mask]:
    """The space of a decoder with that many layers, heads and KV heads."""

    def space(trial: BaseTrial) -> masks.Mask:
        share = trial.suggest_float("share", 0, 1)  # of the KV heads are full, on average
        local = masks.window(REACHES[trial.suggest_int("reach", 0, len(REACHES) - 1)])
        sinks = trial.suggest_categorical("sinks", SINKS)
        local = local | masks.columns(sinks) if sinks else local
        chosen = []
        for layer in range(layers):
            numbers = [trial.suggest_float(f"l{layer}.kv{kv}", 0, 1) for kv in range(kv_heads)]
            parts = [masks.full() if number < share else local for number in numbers]
            each = [parts[head * kv_heads // heads] for head in range(heads)]
            same = all(part == parts[0] for part in parts)
            chosen.append(parts[0] if same else masks.per_head(each))
        return masks.per_layer(chosen)

    space.masksearch_source = f"{layers} {heads} {kv_heads} {REACHES} {SINKS}"  # for resuming
    return space


space = space_of(LAYERS, HEADS, KV_HEADS)
