"""What the two PyTorch contestants share: the layers, the batches, the counts."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from contestants.task import Task
from contestants.worker import Trained
from pydeq.model import Params, iter_batches

__all__ = ["Data", "Layers", "Tally"]


class Layers(nn.Module):
    """Encoder, cell and decoder with the task's weights."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        torch.set_num_threads(task.threads)
        self.encoder = _linear(task.params, "encoder")
        self.cell = nn.Sequential(
            _linear(task.params, "cell.0"), nn.Tanh(), _linear(task.params, "cell.1")
        )
        self.decoder = _linear(task.params, "decoder")

    def weights(self) -> Params:
        """Return copies of the weights as they act."""
        layers = {
            "encoder": self.encoder,
            "cell.0": self.cell[0],
            "cell.1": self.cell[2],
            "decoder": self.decoder,
        }
        params: Params = {}
        for name, layer in layers.items():
            params[f"{name}.weight"] = layer.weight.detach().numpy().T.copy()
            params[f"{name}.bias"] = layer.bias.detach().numpy().copy()
        return params


def _linear(params: Params, name: str) -> nn.Linear:
    n_in, n_out = params[f"{name}.weight"].shape
    layer = nn.Linear(n_in, n_out)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(params[f"{name}.weight"].T.copy()))
        layer.bias.copy_(torch.from_numpy(params[f"{name}.bias"]))
    return layer


class Data:
    """The training samples as tensors; a batch is an index away, as without a DataLoader."""

    def __init__(self, task: Task) -> None:
        self._x, self._y = torch.from_numpy(task.x), torch.from_numpy(task.y)
        self._batch_size = task.batch_size

    def batches(self, order: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield samples and classes of each batch."""
        for index in iter_batches(order, self._batch_size):
            chosen = torch.from_numpy(index)
            yield self._x[chosen], self._y[chosen]


class Tally:
    """Evaluations, each weighed by the samples that it was made for."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def reset(self) -> None:
        """Begin anew."""
        self._counts.clear()

    def add(self, which: str, n: int) -> None:
        """Count one evaluation of `n` samples."""
        self._counts[which] += n

    def mean(self, which: str, n: int) -> float:
        """Return evaluations per sample of `n`."""
        return self._counts[which] / n

    def trained(self, total_loss: float, n: int) -> Trained:
        """Return what the batches of `n` samples came to."""
        return Trained(total_loss / n, self.mean("forward", n), self.mean("backward", n))
