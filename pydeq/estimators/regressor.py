"""Regression with deep equilibrium models."""

from typing import Any, ClassVar, Self, final

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags

from pydeq.estimators.base import AbstractDEQEstimator, TargetBlocks
from pydeq.estimators.scaling import TargetScale
from pydeq.estimators.together import Pool

__all__ = ["DEQRegressor"]


@final
class DEQRegressor(RegressorMixin, AbstractDEQEstimator):
    """Deep equilibrium regressor.

    It predicts with the equilibrium of a small network. An affine encoder turns the features into
    h. The state z solves ``z = f(z, h)``: it is the steady state of ``du/dt = f(u, h) - u``. An
    affine decoder turns z into the prediction.

    Each output is learned at mean 0 and standard deviation 1, so that fits of y in any unit are
    alike: `params_`, `loss_curve_` and `tol` are of that scale (a loss of 1 is that of the mean),
    predictions and ``equilibrium(X).output`` are in the units of y. The mean and the deviation are
    those of the first call; `partial_fit` and `warm_start` keep them. With ``n_state=None`` the
    output is the state itself, which lives where X does: then y is learned as it is.

    Parameters
    ----------
    n_state : int or None, default=128
        Number of states. None: the state is the input itself, without encoder and decoder, which
        needs as many features as outputs.
    hidden_layer_sizes : int or sequence of int, default=(128,)
        Widths of the cell's hidden layers. ``()`` is an affine cell; the monotone cell needs it.
    activation : {"identity", "logistic", "tanh", "relu"}, default="relu"
        Activation of the cell's hidden layers, or of the monotone cell.
    stability : {"none", "jacobian", "contractive", "monotone"}, default="contractive"
        How the cell is kept from losing its equilibrium as it trains. ``"contractive"`` scales its
        weights so that its Lipschitz constant is at most `contraction`: the equilibrium is unique,
        and every solver finds it. ``"monotone"`` is another cell, a single layer
        ``act(z W + h + b)`` whose I - W is strongly monotone: the equilibrium is unique too
        (Winston and Kolter 2020). With ``cell=[Conv(channels), Activation(name)]`` the W is a
        convolution. ``"jacobian"`` adds `jacobian_penalty` to the loss (Bai et al.
        2021). ``"none"`` does nothing.
    contraction : float, default=0.9
        Bound of the cell's Lipschitz constant for ``stability="contractive"``, above 0, below 1.
    jacobian_penalty : float, default=1.0
        Factor of an estimate of ``||df/dz||_F^2 / n_state`` in the loss, for
        ``stability="jacobian"``.
    train_encoder : bool, default=True
        Whether the encoder trains. False keeps its random start.
    input_shape : tuple of int or None, default=None
        Shape of the image that a row of X is, ``(channels, height, width)``: channel by channel,
        row by row. None: a row of values, ``(n_features,)``.
    encoder, cell, decoder : sequence of Layer or None, default=None
        The cell may also be a :class:`pydeq.CellFunction`, a function of one's own (JAX engine), or
        Julia code that makes a Lux layer, see :func:`pydeq.julia_cell` (Julia engine).
        Layers of :mod:`pydeq.layers`. The encoder makes the state's shape, h. The cell is what its
        layers make of z + h, in the same shape. The decoder makes one value an output of z. None:
        the maps that `n_state`, `hidden_layer_sizes` and `activation` say, which then count for
        nothing else. ``()`` passes on what it is given.
    init : {"cell", "zero", "encoder"} or sequence of Layer, default="cell"
        Where each search begins, u(0): at ``f(0, h)``, at 0, at h, or at what layers make of h, in
        the state's shape. Such a guess learns where the equilibria are: see `init_penalty` (the
        skip DEQ of Pal et al. 2022).
    init_penalty : float, default=1.0
        Factor of the mean square of ``z - u(0)`` in the loss, where `init` has weights. It is all
        that they learn from with ``adjoint="implicit"`` or ``"jfb"``.
    horizon : float or None, default=None
        Time at which the neural ODE ends, in units of its ``du/dt = f(u, h) - u``. None is its
        steady state. A horizon needs ``solver="tsit5"``, ``"auto"`` or, on the Julia engine,
        another method for ODEs.
    solver : {"auto", "tsit5", "anderson", "broyden", "newton", "fixed_point", \
"peaceman_rachford", "bs3", "dp5", "vcab3", "rock4"}, default="auto"
        What finds the equilibrium. ``"tsit5"`` integrates the neural ODE to its steady state.
        ``"bs3"``, ``"dp5"``, ``"vcab3"`` and ``"rock4"`` do so by other methods of OrdinaryDiffEq
        (Bogacki-Shampine, Dormand-Prince, Adams-Bashforth, stabilised Runge-Kutta), which the Julia
        engine alone has; there a batch is one ODE in training, and each sample in prediction.
        ``"anderson"`` (Anderson acceleration) and ``"broyden"`` have a safeguard. ``"newton"`` is
        matrix-free Newton-Krylov, ``"fixed_point"`` plain iteration. ``"peaceman_rachford"`` splits
        the monotone cell. ``"auto"`` takes the quickest where all find the one equilibrium there
        is: ``"anderson"`` for a contractive cell, ``"peaceman_rachford"`` for a monotone one.
        Otherwise it takes ``"tsit5"``, which finds the equilibrium that the ODE goes to.
    abstol, reltol : float, default=1e-6 and 1e-3
        The search ends for a sample when ``||f(z) - z||_inf`` is at most `abstol`, or at most
        ``reltol * ||f(z)||_inf``. The ODE's steps (``solver="tsit5"``, ...) are held to 1e-6 and
        1e-3, or to these where they are tighter; a finite `horizon` is integrated to these. The
        norm is the largest component's: scale the features, or what the largest ones move hides
        the rest.
    max_steps : int, default=1000
        Bound on the solver's steps for a sample.
    adjoint : {"implicit", "jfb", "unrolled"}, default="implicit"
        How the gradient passes the equilibrium. ``"implicit"`` is the implicit function theorem,
        ``"jfb"`` its one-step approximation (Jacobian-free backpropagation). ``"unrolled"``
        differentiates the solver's steps: memory grows with them. ``solver="newton"`` and the
        methods of the Julia engine alone cannot.
        A finite `horizon` is always differentiated through its integration.
    fixed_depth : int or None, default=None
        A fit begins with `fixed_depth_epochs` epochs in which so many steps u <- f(u, h) from u(0)
        take the place of the search, and gradients go through them. Their loss does not count for
        `tol`. A fit that goes on from fitted weights has none, and the calls of `partial_fit` are
        the epochs of one fit. None: every epoch searches equilibria.
    fixed_depth_epochs : int, default=1
        How many such epochs there are.
    learning_rate_init : float, default=2e-3
        Constant step size of Adam (Kingma and Ba 2015), which minimises the mean squared error
        over samples and outputs.
    alpha : float, default=1e-4
        Strength of the L2 penalty on the weights. As in scikit-learn's MLP, it is divided by the
        batch's sum of sample weights. Weights whose mean is below 1e-6 or above 1e6 are first
        divided by it.
    batch_size : int or "auto", default="auto"
        Samples in a batch, at most all there are. ``"auto"`` is ``min(200, n_samples)``.
    max_iter : int, default=200
        Largest number of epochs. Reaching it is no cause for a warning: see
        ``history_.stop_reason``.
    shuffle : bool, default=True
        Whether each epoch sees the samples in a new order.
    tol : float, default=1e-4
        Least improvement that counts, of the training loss, which is relative to the variance of
        each output, or, with `early_stopping`, of the validation score.
    n_iter_no_change : int or inf, default=10
        Training ends after more than this many epochs since the last that improved by `tol`; the
        weights with the least loss are kept. Epochs of a loss above twice the least (1.25 times,
        where an epoch is one batch) are not counted: Adam has overshot, and the loss has not
        settled.
    average : bool, default=True
        Whether `fit` keeps a moving average of the weights at the epochs' ends instead of the last
        ones, which the last batches have moved about. The newest weigh a third, and more in the
        first epochs. `partial_fit` does not average, nor does `early_stopping`, which keeps the
        best epoch's weights.
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the samples, stop when the R^2 on them
        no longer improves, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        Share of the samples held out by `early_stopping`.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights of the last fit (with a new optimiser state).
    random_state : int, RandomState instance or None, default=None
        Decides the starting weights, the order of samples and the validation split, alike for
        every engine. One integer is drawn from it, which seeds a ``numpy.random.Generator``.
    verbose : bool, default=False
        Show a progress bar (tqdm) with each epoch's numbers.
    engine : {"auto", "jax", "julia"}, default="auto"
        What computes. ``"auto"`` takes Julia where its environment has been set up, else JAX.
    device : {"auto", "cpu", "cuda"}, default="auto"
        Where the engine computes.

    Attributes
    ----------
    params_ : dict of str to ndarray
        The weights, ``encoder.weight`` ``(n_features, n_state)``, ``cell.0.weight`` and so on, in
        the dtype that the model works in.
    target_mean_, target_scale_ : ndarray of float64 (n_outputs,)
        An output is ``target_mean_ + target_scale_ * (z @ decoder.weight + decoder.bias)``; 0 and
        1 with ``n_state=None``.
    model_spec_ : ModelSpec
        The mathematics that the weights belong to.
    history_ : History
        For each epoch: loss, gradient norm, evaluations per sample, worst residual, samples that
        failed, seconds and validation score; and why the fit ended. `partial_fit` adds to it.
    loss_curve_ : list of float
        The loss column of `history_`.
    n_iter_ : int
        Number of epochs in `history_`.
    optimizer_state_ : dict of str to ndarray
        The state of Adam, with which `partial_fit` goes on.
    engine_ : str
        Name of the engine that did the fit.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str (n_features_in_,)
        Names of the features, where X had any that are strings.

    Raises
    ------
    ValueError
        By `fit`, if a parameter or the data cannot be used. It says what was needed and what came.
    EngineUnavailableError
        By `fit` and all predictions, if the engine or the device cannot be used here.

    Warns
    -----
    ConvergenceWarning
        Once a fit and once a prediction, if samples did not reach their equilibrium. It has the
        count, and says what to change.

    Notes
    -----
    The same data, parameters and integer `random_state` give the same bits again on the same
    machine, engine and number of cores. Another number of cores adds up float32 numbers in another
    order, so that fits may differ in their last places. A state may differ by one last place with
    the number of samples that are asked for together.

    References
    ----------
    S. Bai, J. Z. Kolter, V. Koltun (2019). Deep Equilibrium Models. NeurIPS.
    S. Bai, V. Koltun, J. Z. Kolter (2021). Stabilizing Equilibrium Models by Jacobian
    Regularization. ICML.
    A. Pal, A. Edelman, C. Rackauckas (2022). Continuous Deep Equilibrium Models: Training Neural
    ODEs Faster by Integrating Them to Infinity.
    P. Izmailov et al. (2018). Averaging Weights Leads to Wider Optima and Better Generalization.
    UAI.
    B. Delattre et al. (2023). Efficient Bound of Lipschitz Constant for Convolutional Layers by
    Gram Iteration. ICML.

    Examples
    --------
    >>> import numpy as np
    >>> from pydeq import DEQRegressor
    >>> X = np.linspace(-1, 1, 50)[:, np.newaxis]
    >>> y = np.exp(X[:, 0])
    >>> model = DEQRegressor(
    ...     n_state=8, hidden_layer_sizes=16, learning_rate_init=0.01, random_state=0
    ... )
    >>> model.fit(X, y).score(X, y) > 0.95
    True
    >>> bool(model.equilibrium(X).converged.all())
    True
    """

    _loss: ClassVar = "squared_error"
    _y_checks: ClassVar = {"multi_output": True, "y_numeric": True}
    _single_target: bool
    target_mean_: np.ndarray
    target_scale_: np.ndarray

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on these samples, going on from all calls before.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        y : array-like (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like (n_samples,), optional

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted values.

        Parameters
        ----------
        X : array-like (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples,) or (n_samples, n_outputs)
            In the shape of the y that was fitted.
        """
        fitted = self._snapshot()
        output = np.concatenate(
            fitted._solve(X, lambda rows, part: fitted._decode_output(part.output))
        )
        return output[:, 0] if fitted._single_target else output

    def _learn_target(self, blocks: TargetBlocks, classes: Any, pool: Pool) -> None:
        first = next(blocks())[0]
        self._single_target = first.ndim == 1
        if self.n_state is None:
            scale = TargetScale.none(_two_dimensional(first).shape[1])
        else:
            scale = TargetScale.of(
                lambda: ((_two_dimensional(y), w.astype(np.float64)) for y, w in blocks()), pool
            )
        self.target_mean_, self.target_scale_ = scale.mean, scale.scale

    def _encode_target(self, y: np.ndarray, dtype: np.dtype) -> np.ndarray:
        y = _two_dimensional(y)
        if np.abs(y).max() > np.finfo(dtype).max:
            raise ValueError(
                f"y reaches {np.abs(y).max():.3g}, too large for {dtype}, which the model works in "
                "because X has it; pass X as float64, or scale y."
            )
        return TargetScale(self.target_mean_, self.target_scale_).apply(y).astype(dtype)

    def _meaning_of_target(self) -> Any:
        return [self.target_mean_.tolist(), self.target_scale_.tolist()]

    @property
    def _n_outputs(self) -> int:
        return len(self.target_mean_)

    def _decode_output(self, output: np.ndarray) -> np.ndarray:
        return TargetScale(self.target_mean_, self.target_scale_).undo(output)

    def _stratum(self, target: np.ndarray) -> None:
        return None

    def _validation_score(
        self, output: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> float:
        if not np.isfinite(output).all():
            return np.nan
        return float(r2_score(target, output, sample_weight=weight))


def _two_dimensional(y: np.ndarray) -> np.ndarray:
    """Return y as float64 ``(n, n_outputs)``."""
    return y.reshape(len(y), -1).astype(np.float64)
