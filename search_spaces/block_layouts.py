"""Any set of blocks on a grid of 8 x 8 blocks: sparsity that a block kernel turns into speed.

7.2e16 masks (2^56): every block off the diagonal is kept or dropped; the diagonal blocks always
stay, so no row is empty. A table of LENGTH positions (set it to the encoder's), which does not
stretch: shorter inputs use its top-left corner, longer ones are refused. Holds full, blocks of
16, 32 and 64 positions, and those with global blocks or with windows of blocks (BigBird's block
form, arXiv 2007.14062).

A block is drawn as a rank of 1 to 10, kept where it is at most `level`: bits drawn on their own
would all give about half of the blocks, and a sampler would never see a sparse mask.

    masksearch search masksearch.spaces:block_layouts --trials 100 --run runs/blocks
"""

from optuna.trial import BaseTrial

from masksearch import masks

LENGTH = 128  # positions of the longest input
GRID = 8  # blocks on a side; LENGTH / GRID positions a block
RANKS = 10  # about `level` of 10 blocks off the diagonal are kept


def space(trial: BaseTrial) -> masks.Mask:
    """The diagonal blocks and the kept ones, the same in every head and layer."""
    size = LENGTH // GRID
    level = trial.suggest_int("level", 1, RANKS, log=True)
    bits = masks.blocks(size).dense(LENGTH)[0, 0]
    for row in range(GRID):
        for column in range(GRID):
            if row == column or trial.suggest_int(f"q{row}.k{column}", 1, RANKS) > level:
                continue
            queries, keys = row * size, column * size
            bits[queries : queries + size, keys : keys + size] = True
    return masks.cropped(masks.table(bits), at=LENGTH)
