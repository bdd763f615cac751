"""Where a fit sets out from: one order of draws, so that whoever starts alike trains alike."""

from typing import NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from pydeq.model import ModelSpec, Params, init_params

__all__ = ["RandomState", "Start", "start_fit"]

RandomState = int | np.random.RandomState | None


class Start(NamedTuple):
    """Weights and randomness at the beginning of a fit.

    Attributes
    ----------
    params : dict of str to ndarray
    optimizer_state : dict of str to ndarray or None
        None: a new one.
    rng : numpy.random.Generator
        Has the validation split and the order of each epoch still to draw.
    seed : int
        Of the Jacobian penalty's probes.
    """

    params: Params
    optimizer_state: Params | None
    rng: np.random.Generator
    seed: int


def start_fit(
    model: ModelSpec, random_state: RandomState, dtype: np.dtype, params: Params | None = None
) -> Start:
    """Return the start of a fit, from fresh weights or from `params`.

    All randomness comes from one generator, which is seeded with an integer drawn from
    ``check_random_state(random_state)``: first the weights, then the seed of the probes, later the
    validation split, then the order of each epoch.

    Parameters
    ----------
    model : ModelSpec
    random_state : int, RandomState instance or None
    dtype : numpy.dtype
        Of fresh weights, float32 or float64.
    params : dict of str to ndarray, optional
        Weights to go on from; nothing is drawn for them.
    """
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    rng = np.random.default_rng(seed)
    if params is None:
        params = init_params(model, rng, dtype)
    return Start(params, None, rng, int(rng.integers(2**31)))
