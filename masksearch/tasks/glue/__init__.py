"""The GLUE tasks: their table, their files, their metrics and their average.

from masksearch.tasks.glue import GlueTask, load_glue, score
"""

from masksearch.tasks.glue.read import Rows as Rows
from masksearch.tasks.glue.read import load_glue as load_glue
from masksearch.tasks.glue.tasks import GlueTask as GlueTask
from masksearch.tasks.glue.tasks import majority as majority
from masksearch.tasks.glue.tasks import score as score
from masksearch.tasks.glue.tasks import task_named as task_named
