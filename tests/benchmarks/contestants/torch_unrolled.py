"""What one writes by hand in PyTorch: iterate until nothing changes, differentiate through it all.

The loop ends by pydeq's own rule (largest of the batch), or after `max_iter` iterations.
"""

from typing import Any, final

import numpy as np
import torch
from torch import nn

from contestants.task import Task
from contestants.torch_common import Data, Layers, Tally
from contestants.worker import AbstractContestant, Predicted, Trained
from pydeq.model import Params

CHUNK = 1000


@final
class Contestant(AbstractContestant):
    """A loop under autograd."""

    form = "mlp tanh"

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        self._reltol, self._max_iter = task.reltol, settings["max_iter"]
        self._data, self._layers, self._tally = Data(task), Layers(task), Tally()
        self._optimizer = torch.optim.Adam(self._layers.parameters(), lr=task.learning_rate)

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self._layers.encoder(x)
        z = self._layers.cell(h)
        self._tally.add("forward", len(x))
        for _ in range(self._max_iter):
            new = self._layers.cell(z + h)
            self._tally.add("forward", len(x))
            with torch.no_grad():
                residual = (new - z).abs().amax(1) / new.abs().amax(1)
            z = new
            if residual.max() <= self._reltol:
                break
        return z, self._layers.decoder(z)

    def train(self, order: np.ndarray) -> Trained:
        """See :class:`AbstractContestant`."""
        self._tally.reset()
        total = 0.0
        for x, y in self._data.batches(order):
            self._optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self._forward(x)[1], y)
            loss.backward()
            self._optimizer.step()
            total += loss.item() * len(x)
        trained = self._tally.trained(total, len(order))
        return Trained(trained.loss, trained.forward, trained.forward)  # each has its pullback

    def settle(self, trained: Trained) -> Trained:
        """See :class:`AbstractContestant`."""
        return trained

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> Predicted:
        """See :class:`AbstractContestant`."""
        self._tally.reset()
        parts = [self._forward(part) for part in torch.from_numpy(x).split(CHUNK)]
        state, output = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
        return Predicted(state, output, self._tally.mean("forward", len(x)))

    def weights(self) -> Params:
        """See :class:`AbstractContestant`."""
        return self._layers.weights()
