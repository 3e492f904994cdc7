"""Data whose dependencies are planted, so that the right mask is known.

from masksearch.tasks.planted import PlantedProcess, PlantedTask
"""

from masksearch.tasks.planted.graded import Dependency as Dependency
from masksearch.tasks.planted.graded import FrontPoint as FrontPoint
from masksearch.tasks.planted.graded import GradedProcess as GradedProcess
from masksearch.tasks.planted.process import PlantedLabelTask as PlantedLabelTask
from masksearch.tasks.planted.process import PlantedProcess as PlantedProcess
from masksearch.tasks.planted.process import PlantedTask as PlantedTask
