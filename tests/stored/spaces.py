"""Spaces of the stored studies. Never edit: the studies hold a hash of this file's text."""

from optuna.trial import BaseTrial

from masksearch import masks


def windows(trial: BaseTrial) -> masks.Mask:
    """22 masks: windows, each with and without a global token."""
    mask = masks.window(trial.suggest_int("reach", 0, 10))
    return mask | masks.global_tokens(1) if trial.suggest_categorical("hub", [0, 1]) else mask


def mixed(trial: BaseTrial) -> masks.Mask:
    """Two heads of several kinds, with conditional parameters; some masks have empty rows."""
    heads = []
    for head in range(2):
        match trial.suggest_categorical(f"kind{head}", ["window", "stride", "random", "bare"]):
            case "window":
                heads.append(masks.window(trial.suggest_int(f"reach{head}", 1, 8, log=True)))
            case "stride":
                heads.append(masks.stride(trial.suggest_int(f"period{head}", 2, 5)))
            case "random":
                keys = trial.suggest_int(f"keys{head}", 1, 3)
                heads.append(masks.random_keys(keys, seed=5) | masks.window(0))
            case _:  # no row but the first keeps a key
                heads.append(masks.global_tokens(1) & masks.blocks(1))
    if trial.suggest_float("hubs", 0.0, 1.0) > 0.5:
        return masks.per_head(heads) | masks.global_tokens(2)
    return masks.per_head(heads)
