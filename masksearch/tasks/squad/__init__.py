"""SQuAD 1.1 and 2.0: the questions, their windows, the answers and their scores.

from masksearch.tasks.squad import load_squad, score
"""

from masksearch.tasks.squad.data import Question as Question
from masksearch.tasks.squad.data import SquadData as SquadData
from masksearch.tasks.squad.data import load_squad as load_squad
from masksearch.tasks.squad.data import read_squad as read_squad
from masksearch.tasks.squad.metrics import score as score
from masksearch.tasks.squad.windows import Answer as Answer
from masksearch.tasks.squad.windows import decode as decode
