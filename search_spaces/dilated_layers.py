"""Dilated windows, one a layer, with global tokens: near keys in one layer, far ones in the next.

24,576 masks for two layers: each layer keeps 1 to 8 keys on each side, 1 to 8 positions apart;
0 to 2 global tokens; the diagonal kept or dropped. Holds longformer(6, 1), star, dilated windows,
windows up to 8. Every row keeps a neighbour (lengths of 16 or more). For
encoders: a decoder's first token has its diagonal alone.

Dilation that grows with the layer: Longformer, arXiv 2004.05150, Section 3.1.

    masksearch search masksearch.spaces:dilated_layers --trials 20 --size tiny --run runs/dil
"""

from optuna.trial import BaseTrial

from masksearch import masks

LAYERS = 2  # of the encoder that is searched
MOST = 8  # keys on each side, and positions from one key to the next


def space(trial: BaseTrial) -> masks.Mask:
    """A dilated window a layer, the same in all its heads, and `hubs` global tokens in front."""
    layers = []
    for layer in range(LAYERS):
        keys = trial.suggest_int(f"l{layer}.keys", 1, MOST)
        gap = trial.suggest_int(f"l{layer}.gap", 1, MOST)
        layers.append(masks.dilated(keys * gap, gap))
    mask = masks.per_layer(layers)
    hubs = trial.suggest_int("hubs", 0, 2)
    if hubs:
        mask = mask | masks.global_tokens(hubs)
    if not trial.suggest_categorical("diagonal", [True, False]):
        mask = masks.without_diagonal(mask)
    return mask
