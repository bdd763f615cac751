"""Classification with deep equilibrium models."""

import json
from typing import Any, ClassVar, Self, final

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from pydeq.estimators.base import AbstractDEQEstimator, TargetBlocks
from pydeq.estimators.labels import labels_from_json, labels_to_json
from pydeq.estimators.together import Pool, alone
from pydeq.model import Equilibrium, log_softmax, softmax

__all__ = ["DEQClassifier"]


@final
class DEQClassifier(ClassifierMixin, AbstractDEQEstimator):
    """Deep equilibrium classifier.

    It predicts with the equilibrium of a small network. An affine encoder turns the features into
    h. The state z solves ``z = f(z, h)``: it is the steady state of ``du/dt = f(u, h) - u``. An
    affine decoder turns z into one logit a class. The softmax of the logits is the probability.

    Parameters
    ----------
    n_state : int or None, default=128
        Number of states. None: the state is the input itself, without encoder and decoder, which
        needs as many features as classes.
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
        Constant step size of Adam (Kingma and Ba 2015), which minimises the softmax cross-entropy.
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
        Least improvement that counts, of the training loss or, with `early_stopping`, of the
        validation score.
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
        Hold out `validation_fraction` of the samples (stratified), stop when the accuracy on them
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
    classes_ : ndarray (n_classes,)
        The class labels, sorted.
    params_ : dict of str to ndarray
        The weights, ``encoder.weight`` ``(n_features, n_state)``, ``cell.0.weight`` and so on, in
        the dtype that the model works in.
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
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from pydeq import DEQClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), DEQClassifier(n_state=20, random_state=0))
    >>> model.fit(X, y).score(X, y) > 0.95
    True
    >>> model.predict_proba(X[:2]).shape
    (2, 3)
    """

    classes_: np.ndarray

    _loss: ClassVar = "log_loss"
    _y_checks: ClassVar = {}

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch on these samples, going on from all calls before.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
        y : array-like (n_samples,)
        classes : array-like (n_classes,), optional
            All labels that any call will bring; needed on the first call.
        sample_weight : array-like (n_samples,), optional

        Returns
        -------
        self
        """
        if not self.__sklearn_is_fitted__():
            if classes is None:
                raise ValueError("The first call to partial_fit needs classes, all labels to come.")
        elif classes is not None and not np.array_equal(_check_classes(classes), self.classes_):
            raise ValueError(
                f"classes={classes!r} differs from the classes of the calls before: "
                f"{self.classes_.tolist()}."
            )
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each sample.

        Parameters
        ----------
        X : array-like (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples,)
            Labels from `classes_`.
        """
        fitted = self._snapshot()
        best = fitted._solve(X, lambda rows, part: part.output.argmax(axis=1))
        return fitted.classes_[np.concatenate(best)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Return how far each sample is on the side of a class.

        Parameters
        ----------
        X : array-like (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples, n_classes) or, of two classes, (n_samples,)
            The logits, in the order of `classes_`. Of two classes the difference of the second's
            and the first's, which is above 0 where the second is predicted.
        """
        logits = np.concatenate(self._snapshot()._solve(X, _logits))
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples, n_classes)
            In the order of `classes_`; each row sums to 1.
        """
        return softmax(np.concatenate(self._snapshot()._solve(X, _logits)), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the natural logarithm of the probability of each class.

        Parameters
        ----------
        X : array-like (n_samples, n_features)

        Returns
        -------
        ndarray (n_samples, n_classes)
            In the order of `classes_`.
        """
        return log_softmax(np.concatenate(self._snapshot()._solve(X, _logits)), axis=1)

    def _learn_target(self, blocks: TargetBlocks, classes: Any, pool: Pool) -> None:
        labels = []
        for y, _ in blocks():
            check_classification_targets(y)
            labels.append(np.unique(column_or_1d(y)))
        if classes is None:
            classes = np.unique(np.concatenate(labels))
            classes = _of_all(classes, pool)
        self.classes_ = _check_classes(classes)

    def _encode_target(self, y: np.ndarray, dtype: np.dtype) -> np.ndarray:
        check_classification_targets(y)
        codes = {label: code for code, label in enumerate(self.classes_.tolist())}
        labels, inverse = np.unique(y, return_inverse=True)
        unseen = [label for label in labels.tolist() if label not in codes]
        if unseen:
            raise ValueError(f"y has unseen labels: {unseen}; the classes are {list(codes)}.")
        return np.array([codes[label] for label in labels.tolist()], np.int32)[inverse]

    def _meaning_of_target(self) -> Any:
        return labels_to_json(self.classes_)

    @property
    def _n_outputs(self) -> int:
        return len(self.classes_)

    def _decode_output(self, output: np.ndarray) -> np.ndarray:
        return output

    def _stratum(self, target: np.ndarray) -> np.ndarray:
        return target

    def _validation_score(
        self, output: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> float:
        return float(np.average(output.argmax(axis=1) == target, weights=weight))


def _logits(rows: slice, part: Equilibrium) -> np.ndarray:
    return part.output


def _of_all(labels: np.ndarray, pool: Pool) -> np.ndarray:
    """Return the labels of all processes, each of which may have them in another dtype."""
    if pool is alone:
        return labels
    text = json.dumps(labels_to_json(labels)).encode()
    parts = pool(np.frombuffer(text, np.uint8))
    return np.concatenate([labels_from_json(json.loads(part.tobytes())) for part in parts])


def _check_classes(labels: Any) -> np.ndarray:
    """Return the sorted labels, of which there must be two."""
    classes = np.unique(column_or_1d(labels))
    if len(classes) < 2:
        raise ValueError(f"A classifier needs at least 2 classes; got 1 class: {classes.tolist()}.")
    return classes
