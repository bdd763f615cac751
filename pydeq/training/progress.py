"""tqdm's progress bar, in a notebook and in a terminal."""

import warnings
from typing import Any


def progress_bar(**settings: Any) -> Any:
    """Return `tqdm.auto.tqdm(**settings)`, imported only when a bar is drawn."""
    with warnings.catch_warnings():
        # In a notebook without ipywidgets tqdm draws its bar as text, and warns of that.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from tqdm.auto import tqdm

    return tqdm(**settings)
