"""Data whose dependencies are planted, so that the right mask is known.

from masksearch.tasks.planted import PlantedProcess, PlantedTask
"""

from masksearch.tasks.planted.downstream import PlantedLabelTask
from masksearch.tasks.planted.glue import PlantedGlue, PlantedGlueTask
from masksearch.tasks.planted.process import PlantedProcess, PlantedTask

__all__ = ["PlantedGlue", "PlantedGlueTask", "PlantedLabelTask", "PlantedProcess", "PlantedTask"]
