"""Numpy twins of what the engines compute: losses, link functions, the residual."""

import numpy as np
import scipy.special

__all__ = ["log_softmax", "loss", "residual", "softmax"]

softmax = scipy.special.softmax
log_softmax = scipy.special.log_softmax


def loss(name: str, output: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Return the loss of a batch, without penalties.

    Parameters
    ----------
    name : {"squared_error", "log_loss"}
        ``squared_error``: mean over outputs and weighted mean over samples of
        ``(output - target) ** 2``. ``log_loss``: weighted mean over samples of the softmax
        cross-entropy.
    output : ndarray (n, n_outputs)
        The model's raw output (logits for ``log_loss``).
    target : ndarray (n, n_outputs) or, for ``log_loss``, (n,)
        Values, or indices of classes.
    weight : ndarray (n,)
        Sample weights, not all zero.
    """
    if name == "log_loss":
        per_sample = -log_softmax(output, axis=1)[np.arange(len(target)), target]
    else:
        per_sample = ((output - target) ** 2).mean(axis=1)
    return float(weight @ per_sample / weight.sum())


def residual(z: np.ndarray, fz: np.ndarray) -> np.ndarray:
    """Return ``||f(z) - z||_inf / max(||f(z)||_inf, eps)`` per sample.

    Parameters
    ----------
    z, fz : ndarray (n, n_state)
        States and the cell's values there.

    Returns
    -------
    ndarray (n,)
        Never negative; NaN where `fz` is not finite.
    """
    eps = np.finfo(z.dtype).eps
    return np.abs(fz - z).max(axis=1) / np.maximum(np.abs(fz).max(axis=1), eps)
