"""From a model file to the estimator that was saved."""

from pydeq.estimators import model_file
from pydeq.estimators.classifier import DEQClassifier
from pydeq.estimators.regressor import DEQRegressor
from pydeq.estimators.stored import restore

__all__ = ["load"]

_CLASSES = {"DEQRegressor": DEQRegressor, "DEQClassifier": DEQClassifier}


def load(path: model_file.PathName) -> DEQRegressor | DEQClassifier:
    """Return the fitted estimator that its ``save`` wrote.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    DEQRegressor or DEQClassifier
        With the dtype, and so the predictions, of the one that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is not a model of pydeq, is damaged, or was written by a newer pydeq.

    Examples
    --------
    >>> import pydeq
    >>> from pydeq import presets
    >>> model = presets.double(max_iter=5).fit(*presets.double_data())
    >>> model.save("double.safetensors")
    >>> same = pydeq.load("double.safetensors")
    >>> bool(same.predict([[-5.0]])[0] == model.predict([[-5.0]])[0])
    True
    """
    header, arrays = model_file.read(path)
    try:
        return restore(_CLASSES, header, arrays)
    except KeyError as error:
        raise model_file.not_a_model(path, f"its header lacks {error}") from error
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = f"its header or weights are not what it should have ({error})"
        raise model_file.not_a_model(path, reason) from error
