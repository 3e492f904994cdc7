"""LAMB, as the published DAM was trained with it: layer-wise scaled Adam with a global clip.

optimiser = Lamb([{"params": matrices}, {"params": rest, "weight_decay": 0.0}], lr=6e-3)

The conventions are those of the fused CUDA optimiser of NVIDIA's BERT recipe (June 2020), whose
defaults are the defaults here:

1. The gradients of all groups together are divided by max(1, norm / `max_grad_norm`).
2. m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2, both corrected for their start at 0.
3. update = m / (sqrt(v) + eps) + decay w: epsilon outside the root, decay outside the moments.
4. With decay, the update is scaled by norm(w) / norm(update), per tensor and without bounds;
   where either norm is 0, or for a group without decay, it is not scaled: that is plain Adam.
5. w = w - lr update.

One thing differs: steps are counted per tensor, there per group. The two are the same unless
some tensor of a group lacks a gradient at some step, which none did in that recipe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lamb(torch.optim.Optimizer):
    """Large-batch Adam: each decayed tensor moves by `lr` times its own norm.

    Meant for fp32 or fp64 weights with dense gradients; the moments have the weights' dtype.
    Gradients are read, not changed.

    Args:
        params: Parameters or parameter groups; a group may set any of the following but
            `max_grad_norm`.
        lr: Learning rate, at least 0.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the root of the second moment, at least 0.
        weight_decay: At least 0; 0 also turns the layer-wise scaling off.
        max_grad_norm: Largest L2 norm of all gradients together, above 0; `math.inf` = no clip.

    Reference: LAMB, arXiv 1904.00962, Algorithm 2 (which clips nothing and scales every tensor).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "max_grad_norm": max_grad_norm})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients)
            divisor = (norm / self.defaults["max_grad_norm"]).clamp_min(1)
            for group in self.param_groups:
                self.move(group, divisor)

    def move(self, group: dict[str, Any], divisor: Tensor) -> None:
        """One step of one group, its gradients divided by `divisor`."""
        weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["step"] = torch.tensor(0.0)  # on the CPU, as in torch.optim
                self.state[weight]["exp_avg"] = torch.zeros_like(weight)
                self.state[weight]["exp_avg_sq"] = torch.zeros_like(weight)
            self.state[weight]["step"] += 1
        steps = [int(self.state[weight]["step"]) for weight in weights]
        first = [self.state[weight]["exp_avg"] for weight in weights]
        second = [self.state[weight]["exp_avg_sq"] for weight in weights]
        clipped = [w.grad / divisor.to(w.device) for w in weights if w.grad is not None]

        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, clipped, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, clipped, clipped, 1 - beta2)
        root = torch._foreach_sqrt(torch._foreach_div(second, [1 - beta2**t for t in steps]))
        torch._foreach_add_(root, group["eps"])
        update = torch._foreach_div(first, [1 - beta1**t for t in steps])
        torch._foreach_div_(update, root)
        if group["weight_decay"] != 0:
            torch._foreach_add_(update, weights, alpha=group["weight_decay"])
            sizes, changes = torch._foreach_norm(weights), torch._foreach_norm(update)
            for one, size, change in zip(update, sizes, changes, strict=True):
                one.mul_(torch.where((size > 0) & (change > 0), size / change, 1.0))
        torch._foreach_add_(weights, update, alpha=-group["lr"])
