"""Local search: the masks around one that is known, by small changes of its expression.

29,859,840 parameter combinations around longformer(6, 1), itself among them: every number of the
expression moves by up to 2, a part of a union (never its first) may go, up to three distances are
added or removed, global tokens are added, the diagonal is kept or dropped. Put your own mask into
CENTRE (`masks.parse("...")`), or write `around(found, length=128)` in Python (README.md).

    masksearch search masksearch.spaces:around --trials 40 --run runs/around
"""

from optuna.trial import BaseTrial

from masksearch import masks

CENTRE = masks.longformer(6, 1)
MOVE, EDITS, FARTHEST = 2, 3, 16  # of a number; distances edited, the farthest of them
LENGTH = 128  # positions of the encoder: where no row may be empty
LEAST = {"reach": 0, "gap": 1, "period": 1, "size": 1, "last": 1, "count": 0, "distances": 0}
LEAST |= {"positions": 0, "steps": -LENGTH, "of": 0}  # what moves; a seed and a table do not


def around(centre: masks.Mask, length: int = LENGTH):
    """The space of the masks near `centre`; parameters are named by place in the expression."""

    def space(trial: BaseTrial) -> masks.Mask:
        mask = masks.Mask.from_dict(moved(trial, centre.to_dict(), "at"))
        for edit in range(EDITS):
            kind = trial.suggest_categorical(f"edit{edit}", ["none", "add", "remove"])
            edited = masks.offsets([trial.suggest_int(f"edit{edit}.distance", 1, FARTHEST)])
            if kind != "none":
                mask = mask | edited if kind == "add" else mask - edited
        if hubs := trial.suggest_int("hubs", 0, 2):
            mask = mask | masks.global_tokens(hubs)
        diagonal = trial.suggest_categorical("diagonal", ["as it is", "kept", "dropped"])
        mask = masks.without_diagonal(mask) if diagonal == "dropped" else mask
        whole = mask.dense(length).any(-1).all()  # else the diagonal comes back
        return mask if whole and diagonal != "kept" else mask | masks.window(0)

    space.masksearch_source = f"{centre.digest} {length} {MOVE} {EDITS} {FARTHEST}"  # for resuming
    return space


def moved(trial: BaseTrial, plain, place: str, least: int = 0):
    """The plain form of a mask with its numbers moved and some parts of unions left out."""
    if isinstance(plain, int):
        return trial.suggest_int(place, max(least, plain - MOVE), plain + MOVE)
    if isinstance(plain, list):
        return [moved(trial, part, f"{place}.{i}", least) for i, part in enumerate(plain)]
    fields = {name: plain[name] for name in LEAST if name in plain}
    new = plain | {f: moved(trial, v, f"{place}.{f}", LEAST[f]) for f, v in fields.items()}
    if "last" in new:
        new["last"] = min(new["last"], new["size"])
    if new["kind"] == "or":
        names = [f"{place}.of.{i}.kept" for i in range(1, len(new["of"]))]
        kept = [True] + [trial.suggest_categorical(name, [True, False]) for name in names]
        new["of"] = [part for part, stays in zip(new["of"], kept, strict=True) if stays]
    return new


space = around(CENTRE)
