"""This head everything, that head near keys only: for an encoder that is trained already.

4,095 sets of local heads a layer times 6 reaches, and all heads full: 2.2e26 masks for 6 layers
of 12 heads (MiniLM; set LAYERS and HEADS, or call `space_of`). A head is full where its number in
[0, 1] lies below `share`, so random draws have 0, 1, .. 72 full heads equally often. The others
see a global token and, on each side, as many neighbours as their layer's reach says. Holds full,
star, longformer(2^i, 1), and every set of full heads among such.

    masksearch search search_spaces/local_heads.py:space --weights MODEL --glue DIR --run runs/lh
"""

from collections.abc import Callable

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS, HEADS = 6, 12  # of the encoder that is searched
REACHES = [0, 1, 2, 4, 8, 16]  # positions on each side; 0 = the global token and itself


def space_of(layers: int, heads: int) -> Callable[[BaseTrial], masks.Mask]:
    """The space of an encoder with that many layers and heads."""

    def space(trial: BaseTrial) -> masks.Mask:
        share = trial.suggest_float("share", 0, 1)  # of the heads are full, on average
        chosen = []
        for layer in range(layers):
            place = trial.suggest_int(f"l{layer}.local", 0, len(REACHES) - 1)  # among REACHES
            local = masks.window(REACHES[place]) | masks.global_tokens(1)
            numbers = [trial.suggest_float(f"l{layer}.h{head}", 0, 1) for head in range(heads)]
            parts = [masks.full() if number < share else local for number in numbers]
            same = all(part == parts[0] for part in parts)
            chosen.append(parts[0] if same else masks.per_head(parts))
        return masks.per_layer(chosen)

    space.masksearch_source = f"{layers} {heads} {REACHES}"  # for resuming
    return space


space = space_of(LAYERS, HEADS)
