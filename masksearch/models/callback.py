"""A mask in every checkpoint that `transformers.Trainer` writes.

trainer = Trainer(model, args, callbacks=[ms.MaskCallback(masks.window(16))], ..)
trainer.train()
model = ms.load_pretrained("out/checkpoint-500")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from masksearch.attention.attach import attach, attached
from masksearch.attention.probe import unwrapped
from masksearch.errors import AttachError
from masksearch.masks import Mask
from masksearch.models.saving import SaveWithMasks, build_options, masks_to_save


class MaskCallback(TrainerCallback, ExportableState):
    """Trains under a mask with `transformers.Trainer`, and saves it wherever the model is saved.

    Checkpoints, the folder of `trainer.save_model` and what is pushed to the Hub are then what
    `masksearch.save_pretrained` writes. Every model that `model_init` makes gets the mask. A
    training that resumes under another mask is refused.

    Args:
        mask: As in `masksearch.attach`, a mask or a mapping from parts to masks; None = the one
            that is on the model already.
        part: As in `attach`.
        backend: As in `attach`.

    Raises:
        TypeError: If `mask` is no mask.
        AttachError: From the Trainer: if the mask cannot be put on the model, or there is none,
            if the model could not be loaded again from a checkpoint, or one is resumed that was
            trained under another mask.
    """

    def __init__(
        self,
        mask: Mask | Mapping[str, Mask] | None = None,
        *,
        part: str | None = None,
        backend: str = "auto",
    ) -> None:
        several = list(mask.values()) if isinstance(mask, Mapping) else [mask]
        if mask is not None and not all(isinstance(each, Mask) for each in several):
            raise TypeError(
                f"MaskCallback takes a mask such as masks.window(16), got {mask!r:.80}"
            )
        self.mask, self.part, self.backend = mask, part, backend
        self.digests: dict[str, str] = {}

    def on_init_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Puts the mask on the model of the Trainer."""
        if self.mask is not None:
            self.put_on(given["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The same for a model that was made since, and a look at what is resumed."""
        self.put_on(given["model"])
        stored = state.stateful_callbacks.get(type(self).__name__)
        before = stored.get("attributes", {}).get("digests") if isinstance(stored, dict) else None
        if state.global_step and before and before != self.digests:
            raise AttachError(
                f"the checkpoint of step {state.global_step} was trained under another mask than "
                f"the one that is attached now, {attached(given['model'])!s:.200}; resume under "
                "its own, ms.saved_masks(checkpoint), or begin anew, resume_from_checkpoint=None"
            )

    def put_on(self, model: nn.Module) -> None:
        """Attaches the mask where it is not on the model, and lets the model save it."""
        if self.mask is not None and not self.is_on(model):
            attach(model, self.mask, backend=self.backend, part=self.part)
        whole: Any = unwrapped(model, adapters=False)
        found, _ = masks_to_save(whole)
        build_options(whole)  # what could not be loaded again is refused now
        self.digests = {part: mask.digest for part, mask in found.items()}
        whole.__dict__["save_pretrained"] = SaveWithMasks(whole)

    def is_on(self, model: nn.Module) -> bool:
        """Whether the model carries the mask already."""
        found = attached(model)
        if isinstance(self.mask, Mapping):
            return found == dict(self.mask)
        return [*found.values()] == [self.mask] and self.part in (None, *found)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: the digests of the masks."""
        return {"args": {}, "attributes": {"digests": self.digests}}
