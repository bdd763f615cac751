"""What the regressor and the classifier share: from parameters and data to a session and back."""

import abc
import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np

from pydeq.cell_function import CellFunction
from pydeq.engines import (
    AbstractGroup,
    AbstractSession,
    Device,
    EngineName,
    gather_json,
    get_engine,
    get_group,
)
from pydeq.estimators import advice, parameters
from pydeq.estimators.checkpoint import Keeper, digest, identity
from pydeq.estimators.fitted import AbstractFitted
from pydeq.estimators.samples import check_training
from pydeq.estimators.together import (
    Pool,
    all_or_none,
    check_agreed,
    have_common_samples,
    pool_of,
)
from pydeq.layers import Layer
from pydeq.model import (
    Activation,
    Adjoint,
    Loss,
    ModelSpec,
    OptimizerSpec,
    Params,
    Solver,
    SolverSpec,
    Stability,
)
from pydeq.training import (
    Data,
    History,
    RandomState,
    Start,
    Team,
    TrainResult,
    Validation,
    split,
    start_fit,
    train,
)

__all__ = ["AbstractDEQEstimator", "TargetBlocks"]

TargetBlocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


class AbstractDEQEstimator(AbstractFitted):
    """Fit, predict and keep a deep equilibrium model; final classes say what a target is.

    Randomness: see :func:`pydeq.training.start_fit`.

    A fit works on a copy of the estimator, and the estimator becomes that copy at its end, in one
    assignment: a call that raises has changed nothing.
    """

    n_features_in_: int
    feature_names_in_: np.ndarray
    optimizer_state_: Params
    history_: History
    engine_: str
    _rng: np.random.Generator
    _seed: int

    _loss: ClassVar[Loss]
    """What is minimised."""

    _y_checks: ClassVar[dict[str, bool]]
    """Arguments for scikit-learn's ``validate_data`` that depend on what a target is."""

    def __init__(
        self,
        *,
        n_state: int | None = 128,
        hidden_layer_sizes: int | Sequence[int] = (128,),
        activation: Activation = "relu",
        stability: Stability = "contractive",
        contraction: float = 0.9,
        jacobian_penalty: float = 1.0,
        train_encoder: bool = True,
        input_shape: Sequence[int] | None = None,
        encoder: Sequence[Layer] | None = None,
        cell: Sequence[Layer] | CellFunction | str | None = None,
        decoder: Sequence[Layer] | None = None,
        init: Sequence[Layer] | Literal["cell", "zero", "encoder"] = "cell",
        init_penalty: float = 1.0,
        horizon: float | None = None,
        solver: Solver | Literal["auto"] = "auto",
        abstol: float = 1e-6,
        reltol: float = 1e-3,
        max_steps: int = 1000,
        adjoint: Adjoint = "implicit",
        fixed_depth: int | None = None,
        fixed_depth_epochs: int = 1,
        learning_rate_init: float = 2e-3,
        alpha: float = 1e-4,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 200,
        shuffle: bool = True,
        tol: float = 1e-4,
        n_iter_no_change: float = 10,
        average: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: RandomState = None,
        verbose: bool = False,
        engine: EngineName = "auto",
        device: Device = "auto",
    ) -> None:
        self.n_state = n_state
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.stability = stability
        self.contraction = contraction
        self.jacobian_penalty = jacobian_penalty
        self.train_encoder = train_encoder
        self.input_shape = input_shape
        self.encoder = encoder
        self.cell = cell
        self.decoder = decoder
        self.init = init
        self.init_penalty = init_penalty
        self.horizon = horizon
        self.solver = solver
        self.abstol = abstol
        self.reltol = reltol
        self.max_steps = max_steps
        self.adjoint = adjoint
        self.fixed_depth = fixed_depth
        self.fixed_depth_epochs = fixed_depth_epochs
        self.learning_rate_init = learning_rate_init
        self.alpha = alpha
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.average = average
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.engine = engine
        self.device = device

    @abc.abstractmethod
    def _learn_target(self, blocks: TargetBlocks, classes: Any, pool: Pool) -> None:
        """Take from y what encoding and decoding need; `classes` are all labels to come, if any.

        Each call of `blocks` yields y and the sample weights, block by block. `pool` brings what
        is learned of them together with what other processes learn of theirs.
        """

    @abc.abstractmethod
    def _encode_target(self, y: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return the target as engines take it, see :class:`pydeq.training.Data`."""

    @abc.abstractmethod
    def _meaning_of_target(self) -> Any:
        """Return what, beside the target, y is known by, as JSON can hold it."""

    @property
    @abc.abstractmethod
    def _n_outputs(self) -> int:
        """Width of the model's output."""

    @abc.abstractmethod
    def _stratum(self, target: np.ndarray) -> np.ndarray | None:
        """Return what a validation split has to keep in proportion, ``(n,)``."""

    @abc.abstractmethod
    def _validation_score(
        self, output: np.ndarray, target: np.ndarray, weight: np.ndarray
    ) -> float:
        """Return the score of raw output ``(n, n_outputs)``; more is better."""

    @property
    def n_iter_(self) -> int:
        """Number of epochs in `history_`."""
        return len(self.history_)

    @property
    def loss_curve_(self) -> list[float]:
        """Training loss of each epoch in `history_`."""
        return self.history_.loss

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, checkpoint: Any = None) -> Self:
        """Fit the model to samples and their targets.

        Where ``jax.distributed.initialize`` has connected several processes, they fit one model
        together, and each makes this call. If all give the same samples, each takes its share of
        every batch; else each gives samples of its own, and a batch has some of each. All end with
        the same weights.

        Ctrl-C ends the fit after the last epoch that was completed and leaves the estimator fitted
        with that epoch's weights; ``history_.stop_reason`` and a warning say so. Before the end of
        the first epoch it raises KeyboardInterrupt. A call that raises leaves the estimator as it
        was.

        Parameters
        ----------
        X : array-like (n_samples, n_features)
            float32 is worked with in float32, everything else in float64. A memory-mapped file
            (``numpy.load(path, mmap_mode="r")``) is read a few batches at a time, however large it
            is. Datasets of h5py and arrays of zarr and Dask that are larger than 64 MB are first
            copied, block by block, to such a file in the folder for temporary files.
        y : array-like (n_samples,) or, for regression, (n_samples, n_outputs)
            Class labels or real numbers.
        sample_weight : array-like (n_samples,), optional
            Weight 0 is the same as leaving the sample out, weight 2 the same as having it twice.
        checkpoint : str, path-like or Checkpoint, optional
            A folder in which the fit keeps its state, once a minute if :class:`pydeq.Checkpoint`
            does not say otherwise. The same call again goes on from the newest whole checkpoint in
            it and ends with the same bits as a fit that was never cut off; a fit that had come to
            its end is not run again. With other data, parameters or another engine it raises
            ValueError and says which differ. Such files are read as trustingly as model files: no
            code in them is run.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=False, checkpoint=checkpoint)

    @contextlib.contextmanager
    def _open(self, solver: SolverSpec) -> Iterator[AbstractSession]:
        """Open a session on the fitted weights, which only solves."""
        asked = parameters.check_engine(self.get_params(deep=False))
        engine = get_engine(*asked, self.model_spec_, solver)
        session = engine.open(self.model_spec_, solver, OptimizerSpec(), self.params_)
        with contextlib.closing(session):
            yield session

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        incremental: bool,
        classes: Any = None,
        checkpoint: Any = None,
    ) -> Self:
        new, group = self._snapshot(), get_group()
        params = new.get_params(deep=False)
        warm = parameters.check_flag(params, "warm_start")
        resume = (warm or incremental) and new.__sklearn_is_fitted__()
        data, team = new._check_data(X, y, sample_weight, resume, classes, group)
        n_samples, n_features = team.n_samples, data.x.shape[1]
        specs = parameters.fit_specs(params, self._loss, n_samples, n_features, new._n_outputs)
        if resume:
            specs = specs.going_on(len(new.history_) if incremental else None)
        model, solver, training = specs.model, specs.solver, specs.training
        action = "partial_fit" if incremental else "fit"
        if resume:
            goes_on = action if incremental else "warm_start=True"
            parameters.check_same_model(new.model_spec_, model, goes_on)
        if incremental:
            training = parameters.one_epoch(training)
        random_state = copy.deepcopy(new.random_state)
        start = new._start(model, random_state, data, resume, incremental, group)
        engine = get_engine(*parameters.check_engine(params), model, solver, group.size)
        keeper = None
        if checkpoint is not None:
            given = {**params, "random_state": random_state, "engine": engine.name}
            meaning = new._meaning_of_target()
            known = identity(given, data, meaning, start, resume, group)
            keeper = Keeper(checkpoint, known, start, writes=group.rank == 0)
            check_agreed(group, {"checkpoint to go on from (epoch)": keeper.n_epochs})
            start = keeper.start
        held_out = None
        if training.early_stopping:
            stratum = new._stratum(data.targets())
            fraction = training.validation_fraction
            data, held = all_or_none(group, lambda: split(data, fraction, stratum, start.rng))
            team = dataclasses.replace(team, n_samples=_n_samples(data, group, team.common))
            held_out = Validation(held, new._validation_score)
        n_epochs = keeper.n_epochs if keeper else 0
        optimizer = dataclasses.replace(specs.optimizer, seed=start.seed, epoch=n_epochs)
        session = engine.open(model, solver, optimizer, start.params, start.optimizer_state)
        with contextlib.closing(session):
            result = train(
                session,
                data,
                start.rng,
                training,
                held_out,
                specs.verbose and group.rank == 0,
                keeper and keeper.state,
                keeper and keeper.after_epoch,
                team,
            )
        new._keep(model, engine.name, start, result, append=resume and incremental)
        advice.warn_about_fit(result, action, training.max_iter, team.n_samples, model, solver)
        self._become(new, random_state)
        return self

    def _check_data(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        resume: bool,
        classes: Any,
        group: AbstractGroup,
    ) -> tuple[Data, Team]:
        dtype = self._dtype if resume else None
        samples = all_or_none(
            group, lambda: check_training(self, X, y, sample_weight, self._y_checks, dtype)
        )
        values = {n: repr(v) for n, v in self.get_params(deep=False).items() if n != "random_state"}
        form = {
            "number of features": samples.x.shape[1],
            "dtype": samples.dtype.str,
            "outputs": samples.y.shape[1:],
            "weights to go on from": [digest(v) for v in self.params_.values()] if resume else 0,
        }
        check_agreed(group, form | values)
        common = have_common_samples(group, samples)
        if not resume:
            self._learn_target(samples.counted, classes, pool_of(group, common))
        target = all_or_none(
            group, lambda: samples.target(lambda y: self._encode_target(y, samples.dtype))
        )
        data = Data(samples.x, target, samples.weight, samples.index)
        return data, Team(_n_samples(data, group, common), group, common)

    def _start(
        self,
        model: ModelSpec,
        random_state: RandomState,
        data: Data,
        resume: bool,
        incremental: bool,
        group: AbstractGroup,
    ) -> Start:
        if resume and incremental:
            # Each call is the next epoch of one long fit; its probes must differ from the last.
            seed = self._seed + len(self.history_)
            rng = copy.deepcopy(self._rng)
            return Start(self.params_, self.optimizer_state_ or None, rng, seed)
        old = self.params_ if resume else None
        if group.size > 1 and random_state is None:
            random_state = gather_json(group, np.random.randint(2**31 - 1))[0]  # noqa: NPY002
        start = start_fit(model, random_state, data.weight.dtype, old)
        check_agreed(group, {"random_state (what it draws)": start.seed})
        return start

    def _keep(
        self, model: ModelSpec, engine: str, start: Start, result: TrainResult, append: bool
    ) -> None:
        history = result.history
        if append:
            records = [*self.history_.records, *history.records]
            history = History(records, history.stop_reason)
        else:
            self._seed = start.seed
        self.model_spec_ = model
        self.engine_ = engine
        self.history_ = history
        self.params_ = result.kept.params
        self.optimizer_state_ = result.kept.optimizer_state
        self._rng = start.rng

    def _become(self, new: Self, random_state: RandomState) -> None:
        """Take over, at once, what was learned, and what was drawn from the user's generator."""
        mine: Any = self.random_state
        if isinstance(random_state, np.random.RandomState):
            mine.set_state(random_state.get_state(legacy=False))
        object.__setattr__(self, "__dict__", {**vars(new), **self.get_params(deep=False)})


def _n_samples(data: Data, group: AbstractGroup, common: bool) -> int:
    """Return the number of samples of all processes."""
    return len(data) if common else sum(gather_json(group, len(data)))
