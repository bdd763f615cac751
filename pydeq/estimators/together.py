"""What the processes of a fit agree on before they train together.

All make the same calls in the same order. What one of them refuses, all refuse, so that none waits
for another that has given up.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pydeq.engines import AbstractGroup, gather_arrays, gather_json
from pydeq.estimators.checkpoint import digest
from pydeq.estimators.samples import Samples

__all__ = ["Pool", "all_or_none", "alone", "check_agreed", "have_common_samples", "pool_of"]

Pool = Callable[[np.ndarray], list[np.ndarray]]
"""From an array to those of all processes whose samples are to be counted together."""

T = TypeVar("T")


def alone(array: np.ndarray) -> list[np.ndarray]:
    """Return what there is without others; a `Pool`."""
    return [array]


def all_or_none(group: AbstractGroup, work: Callable[[], T]) -> T:
    """Return what `work` returns, unless it raises anywhere: then raise everywhere."""
    if group.size == 1:
        return work()
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    problems = gather_json(group, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, problem in enumerate(problems):
        if problem is not None:
            raise ValueError(f"Process {rank} of {group.size} cannot take part: {problem}")
    return result  # type: ignore[return-value]


def check_agreed(group: AbstractGroup, facts: Mapping[str, Any]) -> None:
    """Raise ValueError, everywhere, where a fact is not the same in all processes."""
    if group.size == 1:
        return
    of_all = gather_json(group, dict(facts))
    for rank, others in enumerate(of_all):
        for name, value in of_all[0].items():
            if others[name] != value:
                raise ValueError(
                    f"The processes of a fit need the same {name}; process 0 has {value!r} and "
                    f"process {rank} has {others[name]!r}."
                )


def have_common_samples(group: AbstractGroup, samples: Samples) -> bool:
    """Return whether all processes were given the same samples."""
    if group.size == 1:
        return True
    facts = [_signature(samples.x), digest(samples.y), digest(samples.weight)]
    of_all = gather_json(group, facts)
    return all(found == of_all[0] for found in of_all)


def _signature(x: np.ndarray) -> list[str]:
    """Return what tells samples from others; of a file: where and what it is, and its two ends."""
    path = getattr(x, "filename", None)
    if isinstance(x, np.memmap) and isinstance(path, str | Path):
        size = 1000
        return [str(path), str(x.offset), str(x.shape), digest(x[:size]), digest(x[-size:])]
    return [digest(x)]


def pool_of(group: AbstractGroup, common: bool) -> Pool:
    """Return how numbers of all samples are brought together."""
    if common:
        return alone
    return lambda array: gather_arrays(group, array)
