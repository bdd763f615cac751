"""Training, the same for every engine: the epochs, their record, the progress bar."""

from pydeq.training.history import EpochRecord, History
from pydeq.training.loop import Data, TrainResult, Validation, split, train
from pydeq.training.progress import progress_bar

__all__ = [
    "Data",
    "EpochRecord",
    "History",
    "TrainResult",
    "Validation",
    "progress_bar",
    "split",
    "train",
]
