"""Selectors of units and variants of DAM that lost, or that only a comparison needs.

Each file is a part of one's own on the public interface (docs/write_your_own.md), and nothing in
masksearch/ imports one of them. Their contract tests are in experiments/tests/test_rivals.py.

    attention_mass.py, first_order.py, switch.py   what each unit is worth: for allocate's method
    greedy_removal.py                              a strategy: greedy_removal.py:GreedyRemoval
    evolution.py                                   a strategy: evolution.py:evolution
    product.py                                     a form of gates: form="product.py:product"
    hard_concrete.py                               gates that are 0 or 1 with some probability
    density_terms.py                               a penalty or a multiplier in the loss
    trained_models.py                              the model that a selector measures on
"""

from pathlib import Path

HERE = Path(__file__).parent


def as_strategy(name: str) -> str:
    """A strategy's name as `strategy=` takes it: evolution is a file beside this one."""
    return f"{HERE}/evolution.py:evolution" if name == "evolution" else name
