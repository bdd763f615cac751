"""What of a fit's samples this process takes, where several work on it."""

from dataclasses import dataclass, field

import numpy as np

from pydeq.engines import AbstractGroup, Alone
from pydeq.model import TrainSpec, epoch_order, iter_batches

__all__ = ["Team"]


@dataclass(frozen=True)
class Team:
    """The processes of a fit, and how they share its samples.

    Attributes
    ----------
    n_samples : int
        Of all processes together.
    group : AbstractGroup
    common : bool
        Whether each process has all samples, and takes its share of each batch. Else each has
        samples of its own, and a batch has some of each.
    """

    n_samples: int
    group: AbstractGroup = field(default_factory=Alone)
    common: bool = True

    def own(self, indices: np.ndarray) -> np.ndarray:
        """Return this process's share of samples that are not of an order."""
        return indices[self.group.rank :: self.group.size] if self.common else indices

    def order(self, n: int, spec: TrainSpec, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return this process's samples of an epoch, in order, and how many a batch has of them.

        Parameters
        ----------
        n : int
            Number of the samples that it has.
        spec : TrainSpec
        rng : numpy.random.Generator
            In the same state everywhere, before and after.
        """
        rank, size = self.group.rank, self.group.size
        if self.common:
            order = epoch_order(n, spec.shuffle, rng)
            if size == 1:
                return order, spec.batch_size
            if spec.batch_size < size:
                raise ValueError(
                    f"A batch needs a sample for each of the {size} processes; got "
                    f"batch_size={spec.batch_size}."
                )
            parts = [batch[rank::size] for batch in iter_batches(order, spec.batch_size)]
            return np.concatenate(parts), len(range(rank, spec.batch_size, size))
        n_batches = -(-self.n_samples // spec.batch_size)
        own = np.random.default_rng([int(rng.integers(2**63)), rank])
        return epoch_order(n, spec.shuffle, own), -(-n // n_batches)
