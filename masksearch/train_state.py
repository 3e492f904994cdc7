"""The state of a training run as named tensors, for checkpoints.

tensors = training_state(model, {"weights": optimiser})
restore_state(tensors, model, {"weights": optimiser})
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def training_state(
    model: nn.Module, optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Weights, buffers, optimiser states and the state of torch's global generators.

    Args:
        model: On one device, whose global generator (of dropout) is part of the state.
        optimisers: Name -> optimiser; a name holds no dot.

    Returns:
        `model.<name>`, `<optimiser>.<number of the parameter>.<what>`, `random` and, for a model
        on a GPU, `random.cuda`. Weights are copies: tied ones share memory, which files cannot.
    """
    weights = model.state_dict()
    tensors = {f"model.{name}": value.clone() for name, value in weights.items()}
    tensors["random"] = torch.get_rng_state()
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    for name, optimiser in optimisers.items():
        for place, entry in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{place}.{key}": value for key, value in entry.items()}
    return tensors


def restore_state(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Puts back weights, buffers and optimiser states, in place; learning rates stay.

    The generators are put back by `restore_random`, when the training goes on.
    """
    model.load_state_dict(
        {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
    )
    for name, optimiser in optimisers.items():
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, place, part = key.split(".")
                entries.setdefault(int(place), {})[part] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": entries})


def restore_random(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Puts back torch's global generators, of the CPU and of a GPU."""
    torch.set_rng_state(tensors["random"])
    if device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
