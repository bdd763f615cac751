"""Training, the same for every engine: the epochs, their record, the progress bar."""

from pydeq.training.history import EpochRecord, History
from pydeq.training.loop import Data, TrainResult, Validation, split, train
from pydeq.training.progress import Progress, progress_bar
from pydeq.training.start import RandomState, Start, start_fit
from pydeq.training.state import Average, Moment, Patience, State
from pydeq.training.team import Team

__all__ = [
    "Average",
    "Data",
    "EpochRecord",
    "History",
    "Moment",
    "Patience",
    "Progress",
    "RandomState",
    "Start",
    "State",
    "Team",
    "TrainResult",
    "Validation",
    "progress_bar",
    "split",
    "start_fit",
    "train",
]
