"""Bytes of the largest tensor that a piece of code makes."""

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class LargestTensor(TorchFunctionMode):
    """`bytes` of the largest storage behind what torch's functions returned within `with`."""

    bytes = 0

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result
