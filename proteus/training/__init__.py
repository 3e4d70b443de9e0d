"""Training: the loop, and what surrounds it."""

from ..world import World as World
from ..world import choose_device as choose_device
from ..world import join as join
from ..world import leave as leave
from .batches import Resumable as Resumable
from .engine import Engine as Engine
from .groups import parameter_groups as parameter_groups
from .interrupt import RunStopped as RunStopped
from .log import NonFiniteLossError as NonFiniteLossError
from .loop import History as History
from .loop import fit as fit
from .objective import Objective as Objective
from .results import compare as compare
from .schedule import EpochSchedule as EpochSchedule
from .schedule import learning_rate as learning_rate
from .several import fit_all as fit_all

__all__ = [
    "Engine",
    "EpochSchedule",
    "History",
    "NonFiniteLossError",
    "Objective",
    "Resumable",
    "RunStopped",
    "World",
    "choose_device",
    "compare",
    "fit",
    "fit_all",
    "join",
    "learning_rate",
    "leave",
    "parameter_groups",
]
