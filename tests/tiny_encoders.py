"""What tests of small encoders and their heads share: a size, tokens, and weights compared."""

from collections.abc import Callable
from typing import Any

import torch

SMALL = "2x32x4"


def seeded(make: Callable[[], Any], seed: int = 3) -> Any:
    """A random model in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(0))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def weights_come_from_the_seed(build: Callable[[int], torch.nn.Module]) -> None:
    """The same seed gives the same weights, another one others, and no generator moves."""
    state = torch.get_rng_state()
    first = weights(build(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)  # a moved global generator changes nothing
    assert same(first, weights(build(5)))
    assert not same(first, weights(build(6)))
    torch.set_rng_state(state)


def sizes(
    words: int, width: int, layers: int, heads: int, inner: int, positions: int = 0, **more: Any
) -> dict[str, Any]:
    """Fields of a configuration of transformers; `more` stands as it is."""
    found = {"vocab_size": words, "hidden_size": width, "num_hidden_layers": layers}
    found |= {"num_attention_heads": heads, "intermediate_size": inner}
    return found | ({"max_position_embeddings": positions} if positions else {}) | more
