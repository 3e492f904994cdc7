"""What a model was built with beside its configuration, so that it is built the same again.

    Build.of(BertModel(config, add_pooling_layer=False)).options     # {"add_pooling_layer": False}

Found at a save by comparing tensors with those of freshly built models, which have no storage.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from masksearch.errors import AttachError, MaskFormatError
from masksearch.models.checkpoints import quiet

Sizes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Build:
    """How a model is built and cast, beside `config.json`.

    Args:
        options: Arguments of the class beside the configuration, where not as by default.
        dtype: The most frequent floating type of its tensors, where it has several, else empty.
        dtypes: Tensor -> type, of the tensors of another type than that.
    """

    options: Mapping[str, bool] = field(default_factory=dict)
    dtype: str = ""
    dtypes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel) -> Build:
        """How this model was built.

        Raises:
            AttachError: If its class, built from its configuration, has other tensors.
        """
        floats = {
            name: str(tensor.dtype).removeprefix("torch.")
            for name, tensor in model.state_dict().items()
            if tensor.is_floating_point()
        }
        counted = Counter(floats.values()).most_common()
        if len(counted) < 2:
            return cls(options_of(model))
        most = counted[0][0]
        others = {name: dtype for name, dtype in floats.items() if dtype != most}
        return cls(options_of(model), most, others)

    def written(self) -> dict[str, Any]:
        """As plain data; empty where nothing is special."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def read(cls, stored: Any) -> Build:
        """From plain data.

        Raises:
            MaskFormatError: If it is not what `written` gives.
        """
        try:
            made = cls(**stored)
            if any(type(value) is not bool for value in made.options.values()):
                raise ValueError("an option is no bool")
            for name in ([made.dtype] if made.dtype else []) + list(made.dtypes.values()):
                floating(name)
        except (TypeError, ValueError, AttributeError) as error:
            raise MaskFormatError(f"its entry 'build' is not readable: {error}") from error
        return made

    def widest(self) -> torch.dtype | None:
        """A type that holds every value of the tensors; None where all have the same."""
        if not self.dtype:
            return None
        double = "float64" in {self.dtype, *self.dtypes.values()}
        return torch.float64 if double else torch.float32

    def cast(self, model: PreTrainedModel) -> None:
        """Gives every tensor of a model in the widest type its own type again, in place."""
        if not self.dtype:
            return
        for prefix, module in model.named_modules(remove_duplicate=False):
            kept = module._non_persistent_buffers_set
            tensors = [*module._parameters.items(), *module._buffers.items()]
            for name, tensor in tensors:
                if tensor is not None and tensor.is_floating_point() and name not in kept:
                    full = f"{prefix}.{name}" if prefix else name
                    tensor.data = tensor.data.to(floating(self.dtypes.get(full, self.dtype)))
        model.config.dtype = model.dtype


def floating(name: str) -> torch.dtype:
    """The floating type of that name.

    >>> floating("bfloat16")
    torch.bfloat16
    """
    found = getattr(torch, name, None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"{name!r:.80} is no floating type of torch such as 'bfloat16'")
    return found


def options_of(model: PreTrainedModel) -> dict[str, bool]:
    """Arguments of a model's class, beside the configuration, that give its tensors.

    Nothing is said of a quantised model, or of a class that is not built from a configuration.

    Raises:
        AttachError: If none do.
    """
    cls = type(model)
    if any(getattr(model, name, None) for name in ("hf_quantizer", "_hf_peft_config_loaded")):
        return {}
    own, default = sizes(model), fresh(model, {})
    if default is None or default == own:
        return {}
    flips = {name: not value for name, value in switches(cls).items()}
    for count in range(1, len(flips) + 1):
        for names in combinations(flips, count):
            options = {name: flips[name] for name in names}
            if fresh(model, options) == own:
                return options
    differ = sorted(name for name in {*own, *default} if own.get(name) != default.get(name))
    lacks, other = differ[0] not in own, differ[0] in default
    how = "lacks" if lacks else "has another size of" if other else "has beside them"
    raise AttachError(
        f"from this model's configuration, {cls.__name__} builds other tensors than it has, so "
        f"nothing could load it again: the model {how} {differ[0]} ({len(differ)} differ); "
        "change the configuration as the model was changed (such as num_hidden_layers, "
        "num_labels), or make it a class of its own, built from its configuration alone"
    )


def switches(cls: type[PreTrainedModel]) -> dict[str, bool]:
    """The bool arguments of a class with their defaults."""
    found = inspect.signature(cls.__init__).parameters.values()
    return {each.name: each.default for each in found if isinstance(each.default, bool)}


def fresh(model: PreTrainedModel, options: Mapping[str, bool]) -> Sizes | None:
    """Tensors of a model built anew, without storage; None where it cannot be built so."""
    config = deepcopy(model.config)
    config._attn_implementation = "sdpa"
    try:
        with quiet(), torch.device("meta"):
            return sizes(type(model)(config, **options))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ImportError):
        return None


def sizes(model: nn.Module) -> Sizes:
    """Name -> shape of what is saved."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
