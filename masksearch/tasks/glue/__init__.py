"""The GLUE tasks: their table, their files, their metrics and their average.

from masksearch.tasks.glue import GlueTask, load_glue, score
"""

from masksearch.tasks.glue.hub import glue_place as glue_place
from masksearch.tasks.glue.metrics import Convention as Convention
from masksearch.tasks.glue.metrics import GlueScore as GlueScore
from masksearch.tasks.glue.metrics import at_majority as at_majority
from masksearch.tasks.glue.metrics import column_metrics as column_metrics
from masksearch.tasks.glue.metrics import constant_scores as constant_scores
from masksearch.tasks.glue.metrics import glue_score as glue_score
from masksearch.tasks.glue.metrics import majority as majority
from masksearch.tasks.glue.metrics import majority_scores as majority_scores
from masksearch.tasks.glue.metrics import reported as reported
from masksearch.tasks.glue.metrics import row_scores as row_scores
from masksearch.tasks.glue.metrics import score as score
from masksearch.tasks.glue.read import GlueData as GlueData
from masksearch.tasks.glue.read import Rows as Rows
from masksearch.tasks.glue.read import load_glue as load_glue
from masksearch.tasks.glue.read import read_rows as read_rows
from masksearch.tasks.glue.tasks import NLI as NLI
from masksearch.tasks.glue.tasks import PAIR as PAIR
from masksearch.tasks.glue.tasks import TASKS as TASKS
from masksearch.tasks.glue.tasks import TWO_WAY as TWO_WAY
from masksearch.tasks.glue.tasks import GlueTask as GlueTask
from masksearch.tasks.glue.tasks import HubForm as HubForm
from masksearch.tasks.glue.tasks import task_named as task_named
from masksearch.tasks.glue.tasks import task_number as task_number
