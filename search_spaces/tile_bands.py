"""Each head a band of a kernel's tiles, with the first columns and rows of tiles: speed at length.

8,503,056 masks for 4 heads, alike in all layers, at LENGTH = 512 positions (set the constants to
the encoder's). Tiles are of 64 queries x 16 keys, which block gather leaves out on a CPU; set 128
x 128 for FlexAttention on CUDA. Every row of tiles keeps the tiles of its own positions, `reach`
more on each side, and the first `columns`; the first `rows` of tiles keep everything. Holds the
tiles of windows, of star, and of longformer(i, 1).

Masks are layouts of blocks: shorter inputs use the top-left corner, longer ones are refused.

    masksearch search masksearch.spaces:tile_bands --corpus TEXT --length 512 --run runs/tiles
"""

from optuna.trial import BaseTrial

from masksearch import masks

HEADS, LENGTH = 4, 512  # of the encoder: heads of a layer, positions of the longest input
QUERIES, KEYS = 64, 16  # of a tile, in positions; one is a multiple of the other
FARTHEST = 8  # tiles of keys on each side of a row's own


def space(trial: BaseTrial) -> masks.Mask:
    """A block layout in blocks of the tiles' finer side, a layout for each head."""
    side = min(QUERIES, KEYS)
    blocks = range(0, LENGTH, side)  # the first position of each
    heads = []
    for head in range(HEADS):
        reach = trial.suggest_int(f"h{head}.reach", 0, FARTHEST)
        columns = trial.suggest_int(f"h{head}.columns", 0, 2)
        rows = trial.suggest_int(f"h{head}.rows", 0, 1)
        kept = []
        for query in blocks:
            first = query // QUERIES * QUERIES  # of the queries of this row of tiles
            last = first + QUERIES - 1
            near = range(first // KEYS - reach, last // KEYS + reach + 1)
            tiles = [key // KEYS for key in blocks]
            whole = query < rows * QUERIES
            kept.append([whole or tile < columns or tile in near for tile in tiles])
        heads.append(kept)
    return masks.block_layout(heads, side)
