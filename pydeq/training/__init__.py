"""Training, the same for every engine: the epochs, their record, the progress bar."""

from pydeq.training.history import EpochRecord, History
from pydeq.training.loop import Data, TrainResult, Validation, split, train
from pydeq.training.progress import Progress, progress_bar
from pydeq.training.start import RandomState, Start, start_fit

__all__ = [
    "Data",
    "EpochRecord",
    "History",
    "Progress",
    "RandomState",
    "Start",
    "TrainResult",
    "Validation",
    "progress_bar",
    "split",
    "start_fit",
    "train",
]
