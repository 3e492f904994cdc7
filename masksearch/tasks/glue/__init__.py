"""The GLUE tasks: their table, their files, their metrics and their average.

from masksearch.tasks.glue import GlueTask, load_glue, score
"""

from masksearch.tasks.glue.hub import glue_place
from masksearch.tasks.glue.metrics import (
    GlueScore,
    at_majority,
    glue_score,
    majority,
    majority_scores,
    reported,
    score,
)
from masksearch.tasks.glue.read import GlueData, Rows, load_glue, read_rows
from masksearch.tasks.glue.tasks import (
    NLI,
    PAIR,
    PLANTED,
    TASKS,
    TWO_WAY,
    GlueTask,
    HubForm,
    task_named,
    task_number,
)

__all__ = [
    "NLI",
    "PAIR",
    "PLANTED",
    "TASKS",
    "TWO_WAY",
    "GlueData",
    "GlueScore",
    "GlueTask",
    "HubForm",
    "Rows",
    "at_majority",
    "glue_place",
    "glue_score",
    "load_glue",
    "majority",
    "majority_scores",
    "read_rows",
    "reported",
    "score",
    "task_named",
    "task_number",
]
