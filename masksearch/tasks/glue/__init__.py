"""The GLUE tasks: their table, their files, their metrics and their average.

from masksearch.tasks.glue import GlueTask, load_glue, score
"""

from masksearch.tasks.glue.read import Rows as Rows
from masksearch.tasks.glue.read import load_glue as load_glue
from masksearch.tasks.glue.tasks import NLI as NLI
from masksearch.tasks.glue.tasks import TASKS as TASKS
from masksearch.tasks.glue.tasks import GlueTask as GlueTask
from masksearch.tasks.glue.tasks import constant_scores as constant_scores
from masksearch.tasks.glue.tasks import majority as majority
from masksearch.tasks.glue.tasks import reported as reported
from masksearch.tasks.glue.tasks import row_scores as row_scores
from masksearch.tasks.glue.tasks import score as score
from masksearch.tasks.glue.tasks import task_named as task_named
