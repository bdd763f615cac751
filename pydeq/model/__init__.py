"""What a model is, in numpy alone: no engine is needed to read, check or certify one."""

from pydeq.model.batching import (
    chunks,
    epoch_order,
    iter_batches,
    iter_blocks,
    padded_size,
    probes,
)
from pydeq.model.bounds import fused, torus
from pydeq.model.certificate import certify
from pydeq.model.equilibrium import Certificates, Equilibrium, joined
from pydeq.model.html import html_table
from pydeq.model.metrics import log_softmax, loss, residual, softmax
from pydeq.model.monotone import effective
from pydeq.model.network import Network, Part, Placed, walk
from pydeq.model.params import (
    Params,
    check_params,
    flatten,
    init_params,
    parameter_shapes,
)
from pydeq.model.reading import RowReader, read_ahead
from pydeq.model.spec import (
    ACTIVATIONS,
    ADJOINTS,
    LOSSES,
    ODE_METHODS,
    SOLVERS,
    STABILITIES,
    Activation,
    Adjoint,
    Init,
    Loss,
    ModelSpec,
    OptimizerSpec,
    Solver,
    SolverSpec,
    Stability,
    TrainSpec,
)

__all__ = [
    "ACTIVATIONS",
    "ADJOINTS",
    "LOSSES",
    "ODE_METHODS",
    "SOLVERS",
    "STABILITIES",
    "Activation",
    "Adjoint",
    "Certificates",
    "Equilibrium",
    "Init",
    "Loss",
    "ModelSpec",
    "Network",
    "OptimizerSpec",
    "Params",
    "Part",
    "Placed",
    "RowReader",
    "Solver",
    "SolverSpec",
    "Stability",
    "TrainSpec",
    "certify",
    "check_params",
    "chunks",
    "effective",
    "epoch_order",
    "flatten",
    "fused",
    "html_table",
    "init_params",
    "iter_batches",
    "iter_blocks",
    "joined",
    "log_softmax",
    "loss",
    "padded_size",
    "parameter_shapes",
    "probes",
    "read_ahead",
    "residual",
    "softmax",
    "torus",
    "walk",
]
