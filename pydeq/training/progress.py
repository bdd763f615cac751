"""The progress of a fit as a tqdm bar, in a notebook and in a terminal."""

import warnings
from typing import Any

from pydeq.engines import BatchReport
from pydeq.training.history import EpochRecord

__all__ = ["Progress", "progress_bar"]


def progress_bar(**settings: Any) -> Any:
    """Return `tqdm.auto.tqdm(**settings)`, imported only when a bar is drawn."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets tqdm draws its bar as text, and warns of that.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    return tqdm(**settings)


class Progress:
    """A bar that moves with every batch; without `verbose` nothing, tqdm not even imported.

    It says "compiling" until the first batch is done.

    Parameters
    ----------
    n_epochs : int
    n_batches : int
        Batches of an epoch.
    verbose : bool
    n_done : int
        Epochs that were done before.
    """

    def __init__(self, n_epochs: int, n_batches: int, verbose: bool, n_done: int = 0) -> None:
        self._bar: Any = None
        self._n_batches = n_batches
        self._n_epochs = n_done
        self._n_done = 0
        if verbose:
            self._bar = progress_bar(
                total=n_epochs,
                initial=n_done,
                desc="compiling",
                unit="epoch",
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} "
                "[{elapsed}<{remaining}{postfix}]",
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_batch(self, report: BatchReport) -> None:
        """Advance by one batch."""
        if self._bar is None:
            return
        self._n_done += 1
        self._bar.set_description_str("fit", refresh=False)
        self._bar.update(self._n_epochs + self._n_done / self._n_batches - self._bar.n)

    def on_epoch(self, record: EpochRecord) -> None:
        """Come to the end of an epoch, and show its numbers."""
        if self._bar is None:
            return
        self._n_epochs += 1
        self._n_done = 0
        self._bar.set_description_str("fit", refresh=False)
        numbers = {
            "loss": f"{record.loss:.4g}",
            "evaluations": f"{record.n_evals:.1f}",
            "residual": f"{record.worst_residual:.1e}",
            "failed": record.n_failed,
        }
        if record.validation_score is not None:
            numbers["score"] = f"{record.validation_score:.4f}"
        self._bar.set_postfix(numbers, refresh=False)
        self._bar.update(self._n_epochs - self._bar.n)
