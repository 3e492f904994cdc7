"""SplitMix64 (Steele et al., OOPSLA 2014): random numbers that are a function of their place."""

from __future__ import annotations

from torch import Tensor


def hashed(values: Tensor, seed: int, stream: int) -> Tensor:
    """A 62-bit hash of each value, by SplitMix64 in wrapping int64 arithmetic."""

    def signed(number: int) -> int:
        number &= 0xFFFFFFFFFFFFFFFF
        return number - (1 << 64) if number >> 63 else number

    def shifted(state: Tensor, bits: int) -> Tensor:
        return (state >> bits) & ((1 << (64 - bits)) - 1)

    state = values + signed(0x9E3779B97F4A7C15 * (seed + 1)) + signed(0xD1B54A32D192ED03 * stream)
    for _ in range(2):  # two rounds: neighbouring rows share no structure
        state = (state ^ shifted(state, 30)) * signed(0xBF58476D1CE4E5B9)
        state = (state ^ shifted(state, 27)) * signed(0x94D049BB133111EB)
        state = state ^ shifted(state, 31)
    return shifted(state, 2)
