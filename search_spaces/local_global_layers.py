"""Which layers of a decoder keep full attention; the others see a few sinks and a window.

4,095 sets of local layers times 6 windows and 4 numbers of sinks, and all layers full: 98,281
masks for 12 layers (set LAYERS, or call `space_of`). A layer is full where its number in [0, 1]
lies below `share`, so random draws have 0, 1, .. 12 full layers equally often. `baselines` has the
patterns that people draw by hand; random ones are this space under `--strategy random`.

    masksearch search search_spaces/local_global_layers.py:space --decoder TEXT --weights MODEL
"""

from collections.abc import Callable

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS = 12  # of the decoder that is searched
REACHES = [7, 15, 31, 63, 127, 255]  # keys before the query's own
SINKS = [0, 1, 4, 16]  # first positions, which all later ones see
EVERY = [2, 3, 4, 6]  # of the baselines: one of so many layers is full


def space_of(layers: int) -> Callable[[BaseTrial], masks.Mask]:
    """The space of a decoder with that many layers."""

    def space(trial: BaseTrial) -> masks.Mask:
        share = trial.suggest_float("share", 0, 1)  # of the layers are full, on average
        local = masks.window(REACHES[trial.suggest_int("reach", 0, len(REACHES) - 1)])
        sinks = trial.suggest_categorical("sinks", SINKS)
        local = local | masks.columns(sinks) if sinks else local
        numbers = [trial.suggest_float(f"l{layer}", 0, 1) for layer in range(layers)]
        return masks.per_layer([masks.full() if n < share else local for n in numbers])

    space.masksearch_source = f"{layers} {REACHES} {SINKS}"  # for resuming
    return space


def baselines(layers: int, local: masks.Mask) -> dict[str, masks.Mask]:
    """Hand-drawn patterns: every k-th layer full, and as many at the bottom, middle and top."""
    found = {}
    for every in EVERY:
        count = layers // every
        first = {"first": 0, "middle": (layers - count) // 2, "last": layers - count}
        chosen = {f"every {every} layers": range(every - 1, layers, every)}
        chosen |= {f"{name} {count}": range(at, at + count) for name, at in first.items()}
        for name, full in chosen.items():
            each = [masks.full() if layer in full else local for layer in range(layers)]
            found[name] = masks.per_layer(each)
    return found


space = space_of(LAYERS)
