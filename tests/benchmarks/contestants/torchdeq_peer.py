"""torchdeq, as its documentation has it: get_deq, apply_norm on the cell, reset_norm every batch.

    pip install 'pydeq[bench]'          (torchdeq 0.1.0 on PyPI; it needs torch only)

Settings: `solver` (forward), `options` (of that solver), `ift` (implicit gradient, true unless
said; false is torchdeq's own default, the gradient of the last step), `norm` (arguments of
apply_norm).

Where its defaults would cost it, others are taken: the forward search ends at the task's relative
tolerance (its norm is the 2-norm; the batch ends with its slowest sample), and the backward one at
1e-3 relative, as pydeq's, instead of 1e-6 absolute. The backward solver is fixed_point_iter, its
default: Anderson there never gets below its regularisation (gradients are small) and takes all its
iterations. Anderson's regularisation is 1e-6 instead of 1e-4, which took a fifth fewer evaluations
at no cost when tried (1e-8 or another window took no fewer). Both directions have the 40 iterations
that are its default. Prediction has batches of 1,000, and 100 iterations.
"""

from typing import Any, final

import numpy as np
import torch
from torch import nn
from torchdeq import apply_norm, get_deq, reset_norm
from torchdeq.solver import get_solver, register_solver

from contestants.task import Task
from contestants.torch_common import Data, Layers, Tally
from contestants.worker import AbstractContestant, Predicted, Trained
from pydeq.model import Params

CHUNK = 1000


@final
class Contestant(AbstractContestant):
    """torchdeq's DEQ between the encoder and the decoder."""

    form = "mlp tanh"

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        torch.manual_seed(task.seed)
        self._tally = Tally()
        self._data = Data(task)
        self._layers = Layers(task)
        norm = dict(settings["norm"])
        apply_norm(self._layers.cell, args=norm)
        self._options = settings.get("options", {})
        self._deq = get_deq(
            f_solver=self._counting("forward", settings["solver"]),
            b_solver=self._counting("backward", "fixed_point_iter"),
            f_tol=task.reltol,
            f_stop_mode="rel",
            b_tol=1e-3,
            b_stop_mode="rel",
            f_max_iter=40,
            b_max_iter=40,
            eval_f_max_iter=100,
            ift=settings.get("ift", True),
        )
        self._optimizer = torch.optim.Adam(self._layers.parameters(), lr=task.learning_rate)
        self._modules = nn.ModuleList([self._layers, self._deq])

    def _counting(self, which: str, name: str) -> str:
        """Register the solver `name` so that its evaluations are counted; return its new name."""
        solve = get_solver(name)

        def counting(func, x0, **kwargs):
            def counted(x, *args, **kwargs):
                self._tally.add(which, len(x0))
                return func(x, *args, **kwargs)

            return solve(counted, x0, **kwargs)

        register_solver(f"{name}, counted {which}", counting)
        return f"{name}, counted {which}"

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        reset_norm(self._layers.cell)
        h = self._layers.encoder(x)
        (*_, z), _ = self._deq(
            lambda z: self._layers.cell(z + h),
            torch.zeros_like(h),
            solver_kwargs=dict(self._options),
        )
        return z, self._layers.decoder(z)

    def train(self, order: np.ndarray) -> Trained:
        """See :class:`AbstractContestant`."""
        self._modules.train()
        self._tally.reset()
        total = 0.0
        for x, y in self._data.batches(order):
            self._optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(self._forward(x)[1], y)
            loss.backward()
            self._optimizer.step()
            # One more evaluation that is differentiated, and its pullback to the weights.
            self._tally.add("forward", len(x))
            self._tally.add("backward", len(x))
            total += loss.item() * len(x)
        return self._tally.trained(total, len(order))

    def settle(self, trained: Trained) -> Trained:
        """See :class:`AbstractContestant`."""
        return trained

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> Predicted:
        """See :class:`AbstractContestant`."""
        self._modules.eval()
        self._tally.reset()
        parts = [self._forward(part) for part in torch.from_numpy(x).split(CHUNK)]
        state, output = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
        return Predicted(state, output, self._tally.mean("forward", len(x)))

    @torch.no_grad()
    def weights(self) -> Params:
        """See :class:`AbstractContestant`; after normalisation, as the last prediction had them."""
        return self._layers.weights()
