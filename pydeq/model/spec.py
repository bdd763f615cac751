"""What a model is, how it is solved and how it is trained, as frozen values.

An engine is handed these and arrays, never an estimator. They hold checked values only:
:mod:`pydeq.estimators.parameters` makes them from an estimator's parameters.
"""

import functools
from dataclasses import dataclass
from typing import Literal, get_args

from pydeq import layers
from pydeq.cell_function import CellFunction
from pydeq.model.network import Network, place
from pydeq.shapes import n_values

__all__ = [
    "ACTIVATIONS",
    "ADJOINTS",
    "LOSSES",
    "ODE_METHODS",
    "SOLVERS",
    "STABILITIES",
    "Activation",
    "Adjoint",
    "Init",
    "Loss",
    "ModelSpec",
    "OdeMethod",
    "OptimizerSpec",
    "Solver",
    "SolverSpec",
    "Stability",
    "TrainSpec",
]

Activation = Literal["identity", "logistic", "tanh", "relu"]
Stability = Literal["none", "jacobian", "contractive", "monotone"]
CommonSolver = Literal["tsit5", "anderson", "broyden", "newton", "fixed_point", "peaceman_rachford"]
OdeMethod = Literal["bs3", "dp5", "vcab3", "rock4"]
Solver = CommonSolver | OdeMethod
Adjoint = Literal["implicit", "jfb", "unrolled"]
Loss = Literal["squared_error", "log_loss"]
Init = Literal["cell", "zero"] | tuple[layers.Layer, ...]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
STABILITIES: tuple[str, ...] = get_args(Stability)
SOLVERS: tuple[str, ...] = get_args(CommonSolver)
ODE_METHODS: tuple[str, ...] = get_args(OdeMethod)
"""Further methods for the neural ODE, of OrdinaryDiffEq: the Julia engine's alone."""
ADJOINTS: tuple[str, ...] = get_args(Adjoint)
LOSSES: tuple[str, ...] = get_args(Loss)


ODE_ABSTOL, ODE_RELTOL = 1e-6, 1e-3
"""Error tolerances of OrdinaryDiffEq's steps, unless others are given."""


@dataclass(frozen=True)
class ModelSpec:
    """The mathematics of one model.

    With u the state, h = x @ encoder.weight + encoder.bias and the cell f(u, h) an MLP of u + h
    whose hidden layers, not its last, end in the activation:

    * the prediction's state is z* with z* = f(z*, h), the steady state of du/dt = f(u, h) - u from
      u(0) = f(0, h), or from another `init` (or u(T) for a finite horizon T);
    * the output is z* @ decoder.weight + decoder.bias.

    ``stability="contractive"`` multiplies each of the cell's L weights (not its biases) by
    ``min(1, (contraction / prod_i sigma_i) ** (1 / L))``, where sigma_i is the upper bound of the
    spectral norm of W_i by five Gram iterations (Delattre et al. 2023, algorithm 1): with
    G = W^T W or W W^T, whichever is smaller, sigma = ||G^32||_F ** (1 / 64), each squaring of G
    preceded by dividing it by its Frobenius norm. The cell's Lipschitz constant is then at most
    ``contraction``, because every activation is 1-Lipschitz.

    ``stability="jacobian"`` adds to the loss ``jacobian_penalty / n_state`` times the weighted mean
    of ||v^T df/dz||_2^2 at z*, v being the batch's probe (Bai et al. 2021, section 4); z* is held
    constant there, the weights and h are not.

    ``stability="monotone"`` is another cell, one layer with the activation on it and h beside the
    weight (Winston and Kolter 2020, eq. 1 and proposition 1 with m = 1): f(u, h) = act(u W + h + b)
    with W = -A A^T + B - B^T, A, B, b being the parameters ``cell.0.weight``, ``cell.0.skew`` and
    ``cell.0.bias``. So I - W is strongly monotone with constant 1, and the equilibrium exists and
    is unique, whatever the weights. With a cell of one `Conv` without a stride and an `Activation`,
    A and B are convolutions with its kernel size k, and W is the one with the kernel, 2k - 1 wide,
    that they make in a plane without end or on the image's torus (section 4 there).

    Encoder, cell and decoder may be other layers (:mod:`pydeq.layers`); the cell is then what its
    layers make of u + h. A contractive one multiplies each of its N own `Dense` and `Conv` weights,
    and what each of its own layers of layers (`Residual`, `Branches`, `Fuse`) gives, by ``min(1,
    (contraction / prod_i b_i) ** (1 / N))``. The bound b_i of a `Dense` weight is sigma_i above.
    That of a `Conv` is the largest sigma of its kernel's matrices ``(out, in)`` at the frequencies
    of a torus: the image or, with zero padding, the image and ``kernel_size - 1`` pixels more, of
    which the convolution is a part. That of a `Residual` is 1 plus the product of the bounds of the
    layers inside it. With p_k that product for branch k, that of `Branches` is the largest p_k
    where each has an image of its own, and ``(sum_k p_k ** 2) ** (1 / 2)`` where all have the same.
    That of a `Fuse` is sigma of the matrix that has 1 on its diagonal and at (i, j) the bound of
    what image i gets from image j; a pixel that is repeated ``step ** 2`` times counts ``step``.

    A state of several images, which `Branches` make, is one row of them in order.

    Attributes
    ----------
    n_features, n_outputs : int
        Widths of the input and of the output.
    n_state : int or None
        Width of the state; None: the state is the input itself, without encoder and decoder
        (then ``n_features == n_outputs``).
    hidden_layer_sizes : tuple of int
        Widths of the cell's hidden layers; ``()`` is an affine cell, and what ``"monotone"`` has.
    activation : str
        Of the hidden layers, one of `ACTIVATIONS`; each is 1-Lipschitz.
    stability : str
        One of `STABILITIES`.
    contraction : float
        Upper bound of the cell's Lipschitz constant for ``stability="contractive"``.
    horizon : float or None
        Final time T of the neural ODE; None: its steady state.
    input_shape : tuple of int or None
        Shape that a sample's features have in C order; None: ``(n_features,)``.
    encoder, cell, decoder : tuple of Layer or None
        The cell may be a function, f itself, with ``stability="none"`` or ``"jacobian"``.
        None: the maps above. With an encoder `n_state` is the number of values that it makes; with
        a cell `hidden_layer_sizes` and `activation` say nothing.
    init : "cell", "zero" or tuple of Layer
        The first guess u(0): f(0, h), 0, or what layers make of h; ``()`` is h itself. What layers
        with weights learn is :attr:`OptimizerSpec.init_penalty`'s.
    """

    n_features: int
    n_outputs: int
    n_state: int | None
    hidden_layer_sizes: tuple[int, ...]
    activation: Activation = "tanh"
    stability: Stability = "none"
    contraction: float = 0.9
    horizon: float | None = None
    input_shape: tuple[int, ...] | None = None
    encoder: tuple[layers.Layer, ...] | None = None
    cell: tuple[layers.Layer, ...] | CellFunction | None = None
    decoder: tuple[layers.Layer, ...] | None = None
    init: Init = "cell"

    @property
    def network(self) -> Network:
        """The layers of encoder, cell and decoder, whichever way they were given.

        Raises
        ------
        ValueError
            If a layer does not fit the one before it.
        """
        return _network(self)

    @property
    def has_layers(self) -> bool:
        """Whether layers, or the shape of an input, were given."""
        given = (self.input_shape, self.encoder, self.cell, self.decoder)
        return any(value is not None for value in given)

    @property
    def learns_init(self) -> bool:
        """Whether the first guess has weights."""
        return any(placed.has_weights for placed in self.network.init)

    @property
    def state_width(self) -> int:
        """Width of the state u, whether or not there is an encoder."""
        return n_values(self.network.state_shape)

    @property
    def cell_widths(self) -> tuple[int, ...]:
        """Numbers of values in the cell: of its input, and of what each layer with weights gives.

        One that is made of layers counts as one.
        """
        weighted = [placed for placed in self.network.cell if placed.has_weights]
        return (self.state_width, *(n_values(placed.gives) for placed in weighted))


@functools.lru_cache(256)
def _network(model: ModelSpec) -> Network:
    input_shape = model.input_shape or (model.n_features,)
    encoder, state_shape = place("encoder", _encoder(model, input_shape), input_shape)
    cell, made = place("cell", _cell(model, state_shape), state_shape)
    if made != state_shape:
        raise ValueError(
            f"cell must give the shape of the state, which it is given: {state_shape}, from the "
            f"encoder; it gives {made}. Its last layer, {cell[-1].where}, is given "
            f"{cell[-1].given}."
        )
    decoder, output = place("decoder", _decoder(model, state_shape), state_shape)
    if output != (model.n_outputs,):
        last = f"its last layer is {decoder[-1].where}" if decoder else "it has no layer"
        raise ValueError(
            f"decoder must give as many values as there are outputs, shape ({model.n_outputs},); "
            f"it gives {output}: {last}."
        )
    init, guess = place("init", _init(model), state_shape)
    if guess != state_shape:
        raise ValueError(
            f"init must give the shape of the state, which it is given: {state_shape}; it gives "
            f"{guess}. Its last layer is {init[-1].where}."
        )
    return Network(input_shape, encoder, state_shape, cell, decoder, init)


def _encoder(model: ModelSpec, given: tuple[int, ...]) -> tuple[layers.Layer, ...]:
    if model.encoder is not None:
        return model.encoder
    if model.n_state is None:
        return ()
    return (*_flat(given), layers.Dense(model.n_state))


def _cell(model: ModelSpec, given: tuple[int, ...]) -> tuple[layers.Layer, ...]:
    if isinstance(model.cell, CellFunction):
        return ()
    if model.cell is not None:
        return model.cell
    if len(given) != 1:
        raise ValueError(
            f"cell=None is a network of values in a row, and the encoder gives shape {given}. End "
            "encoder with Flatten(), or say the cell's layers in cell."
        )
    if model.stability == "monotone":
        return (layers.Dense(*given), layers.Activation(model.activation))
    hidden: list[layers.Layer] = []
    for width in model.hidden_layer_sizes:
        hidden += [layers.Dense(width), layers.Activation(model.activation)]
    return (*hidden, layers.Dense(*given))


def _decoder(model: ModelSpec, given: tuple[int, ...]) -> tuple[layers.Layer, ...]:
    if model.decoder is not None:
        return model.decoder
    if model.n_state is None:
        return ()
    return (*_flat(given), layers.Dense(model.n_outputs))


def _init(model: ModelSpec) -> tuple[layers.Layer, ...]:
    return () if isinstance(model.init, str) else model.init


def _flat(given: tuple[int, ...]) -> tuple[layers.Layer, ...]:
    """Return what makes a row of a shape."""
    return () if len(given) == 1 else (layers.Flatten(),)


@dataclass(frozen=True)
class SolverSpec:
    """How an equilibrium is found and differentiated.

    Attributes
    ----------
    name : str
        One of `SOLVERS`, or of `ODE_METHODS`.
    abstol, reltol : float
        The search ends for a sample when ``||f(u) - u||_inf`` is at most ``abstol`` or at most
        ``reltol * ||f(u)||_inf`` (the rule of SteadyStateDiffEq's ``DynamicSS``).
    max_steps : int
        Bound on the solver's steps for one sample.
    adjoint : str
        One of `ADJOINTS`.
    fixed_depth : int or None
        In a session's epochs before the one numbered `fixed_depth_epochs`, from 0, the state is not
        an equilibrium: it is what so many steps u <- f(u, h) make of u(0), and gradients go through
        them (pretraining, as in DeepEquilibriumNetworks.jl). Only a state that is not finite fails.
    fixed_depth_epochs : int
    """

    name: Solver = "tsit5"
    abstol: float = 1e-3
    reltol: float = 1e-3
    max_steps: int = 1000
    adjoint: Adjoint = "implicit"
    fixed_depth: int | None = None
    fixed_depth_epochs: int = 0

    def ode_tolerances(self, model: ModelSpec) -> tuple[float, float]:
        """Return the absolute and the relative error tolerance of the ODE's steps.

        A search along the ODE takes OrdinaryDiffEq's own, 1e-6 and 1e-3, but none looser than the
        search's. A finite horizon, where no search ends anything, takes `abstol` and `reltol`.
        """
        if model.horizon is not None:
            return self.abstol, self.reltol
        search = max(self.abstol, self.reltol)
        return min(ODE_ABSTOL, search), min(ODE_RELTOL, search)


@dataclass(frozen=True)
class OptimizerSpec:
    """What Adam minimises, and how (Kingma and Ba 2015).

    The betas are 0.9 and 0.999; eps is 1e-8 and stands outside the root.

    Attributes
    ----------
    loss : str
        One of `LOSSES`; see :func:`pydeq.model.loss`.
    learning_rate : float
        Constant step size.
    alpha : float
        Strength of the L2 penalty ``alpha / 2 * sum(W ** 2) / sum(w)`` over the weights (not the
        biases), ``w`` being the weights of the batch's samples that converged (as in
        scikit-learn's MLP).
    jacobian_penalty : float
        Factor of the estimate of ``||df/dz||_F^2 / n_state`` (Bai et al. 2021, eq. 6) with
        ``stability="jacobian"``.
    train_encoder : bool
        False: the encoder keeps its start, as it does in the blog's code.
    seed : int
        Of the random probes behind the Jacobian penalty.
    epoch : int
        Of those probes that a session begins with: the number of epochs done before it.
    init_penalty : float
        Factor of the weighted mean over samples of ``||z* - g(h)||_2^2 / n_state``, g being a first
        guess with weights (Pal et al. 2022, the skip DEQ). Both sides of it have a gradient.
    """

    loss: Loss = "squared_error"
    learning_rate: float = 1e-3
    alpha: float = 0.0
    jacobian_penalty: float = 0.0
    train_encoder: bool = True
    seed: int = 0
    epoch: int = 0
    init_penalty: float = 0.0


@dataclass(frozen=True)
class TrainSpec:
    """The epoch loop (scikit-learn's MLP gives the names and their meaning).

    The first `fixed_depth_epochs` have another loss than those after them, see `SolverSpec`.
    """

    batch_size: int
    max_iter: int
    shuffle: bool
    tol: float
    n_iter_no_change: int
    average: bool
    early_stopping: bool
    validation_fraction: float
    fixed_depth_epochs: int = 0
