"""SQuAD 1.1 and 2.0: the questions, their windows, the answers and their scores.

from masksearch.tasks.squad import load_squad, score
"""

from masksearch.tasks.squad.data import Question, SquadData, load_squad, read_squad
from masksearch.tasks.squad.decode import Answer, decode
from masksearch.tasks.squad.metrics import score

__all__ = [
    "Answer",
    "Question",
    "SquadData",
    "decode",
    "load_squad",
    "read_squad",
    "score",
]
