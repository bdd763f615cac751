"""Write examples/guides/api.md, the API reference, from the docstrings.

python tests/api_reference.py
"""

import importlib
import inspect
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

PAGE = Path(__file__).resolve().parents[1] / "examples" / "guides" / "api.md"

WIDTH = 100
"""Columns of the page."""

# A heading, and the names under it with the module that users import each from.
CONTENTS = {
    "Estimators": [
        "pydeq.DEQRegressor",
        "pydeq.DEQRegressor.fit",
        "pydeq.DEQRegressor.partial_fit",
        "pydeq.DEQRegressor.predict",
        "pydeq.DEQRegressor.equilibrium",
        "pydeq.DEQRegressor.trajectory",
        "pydeq.DEQRegressor.save",
        "pydeq.DEQClassifier",
        "pydeq.DEQClassifier.partial_fit",
        "pydeq.DEQClassifier.predict",
        "pydeq.DEQClassifier.decision_function",
        "pydeq.DEQClassifier.predict_proba",
        "pydeq.Checkpoint",
        "pydeq.load",
        "pydeq.CellFunction",
        "pydeq.julia_cell",
    ],
    "Layers": [
        "pydeq.layers.Dense",
        "pydeq.layers.Conv",
        "pydeq.layers.Activation",
        "pydeq.layers.GroupNorm",
        "pydeq.layers.MaxPool",
        "pydeq.layers.MeanPool",
        "pydeq.layers.Flatten",
        "pydeq.layers.Residual",
        "pydeq.layers.Branches",
        "pydeq.layers.Fuse",
        "pydeq.layers.Layer",
    ],
    "What they return": [
        "pydeq.Equilibrium",
        "pydeq.Certificates",
        "pydeq.History",
        "pydeq.EpochRecord",
    ],
    "Fixed points": ["pydeq.fixed_point", "pydeq.FixedPoint"],
    "Presets": [
        "pydeq.presets.double",
        "pydeq.presets.double_data",
        "pydeq.presets.mnist",
        "pydeq.presets.mnist_conv",
        "pydeq.presets.mnist_multiscale",
    ],
    "Data": ["pydeq.datasets.load_digits", "pydeq.datasets.load_mnist", "pydeq.datasets.shifted"],
    "Figures": [
        "pydeq.plot.cobweb",
        "pydeq.plot.depth_trajectories",
        "pydeq.plot.digit",
        "pydeq.plot.digit_grid",
        "pydeq.plot.feature_clusters",
        "pydeq.plot.animate_feature_clusters",
        "pydeq.plot.history_curves",
        "pydeq.plot.prediction_vs_truth",
        "pydeq.plot.training_curve",
    ],
    "Warnings and errors": [
        "pydeq.ConvergenceWarning",
        "pydeq.EngineError",
        "pydeq.EngineUnavailableError",
        "pydeq.ModelFileError",
    ],
}


def find(name: str) -> Any:
    """Return what a dotted name of `CONTENTS` means."""
    if name.startswith("pydeq.fixed_points."):  # a module that its function stands before
        return getattr(importlib.import_module("pydeq.fixed_points"), name.split(".")[-1])
    module, *attributes = name.split(".")
    found: Any = importlib.import_module(module)
    for attribute in attributes:
        if not hasattr(found, attribute):
            importlib.import_module(f"{found.__name__}.{attribute}")
        found = getattr(found, attribute)
    return found


def render() -> str:
    """Return the whole page."""
    lines = [
        "# API reference",
        "",
        "Made from the docstrings by `python tests/api_reference.py`; `help(pydeq.DEQClassifier)`",
        "and so on show the same in Python.",
    ]
    for heading, names in CONTENTS.items():
        lines += ["", f"## {heading}"]
        for name in names:
            lines += ["", *entry(name, find(name))]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def entry(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one name."""
    yield f"### `{name}`"
    defaults: dict[str, Any] = {}
    if is_called(value):
        signature = inspect.signature(value)
        defaults = {p.name: p.default for p in signature.parameters.values()}
        plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        bare = signature.replace(parameters=plain, return_annotation=signature.empty)
        yield from ("", "```python", *call(name.rsplit(".", 1)[-1], bare), "```")
    for section in griffe.Docstring(inspect.getdoc(value) or "").parse("numpy"):
        yield ""
        yield from lines_of(section, defaults)


def call(name: str, signature: inspect.Signature) -> list[str]:
    """Return a signature on one line, or with a parameter a line where it is wider than a page."""
    whole = f"{name}{signature}"
    if len(whole) <= WIDTH:
        return [whole]
    lines = [f"    {parameter}," for parameter in signature.parameters.values()]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "    *,")
    return [f"{name}(", *lines, ")"]


def is_called(value: Any) -> bool:
    """Return whether users call it; an exception's signature says nothing."""
    return callable(value) and not (isinstance(value, type) and issubclass(value, BaseException))


def lines_of(section: Any, defaults: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one section of a docstring."""
    kind = section.kind.value
    if kind == "text":
        yield section.value
    elif kind == "admonition":  # References, Notes
        yield from (f"**{section.title}**", "", section.value.description)
    elif kind == "examples":
        code = [text for part, text in section.value if part.value == "examples"]
        yield from ("**Examples**", "", "```pycon", "\n".join(code), "```")
    else:
        yield from (f"**{kind.capitalize()}**", "")
        for item in section.value:
            line = item_line(item, defaults if kind == "parameters" else {})
            yield from textwrap.wrap(
                line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )


def item_line(item: Any, defaults: dict[str, Any]) -> str:
    """Return one parameter, attribute, returned value, error or warning as a list's item."""
    head = []
    if name := getattr(item, "name", ""):
        head.append(f"`{name}`")
    if kind := getattr(item, "annotation", ""):
        head.append(str(kind))
    default = defaults.get(name, inspect.Parameter.empty)
    # A path's and an axes' None is no value to set: their "optional" says it.
    if default is not inspect.Parameter.empty and ("None" in str(kind) or default is not None):
        head.append(f"default `{default!r}`")
    text = " ".join(item.description.split())
    return f"- {', '.join(head)}" + (f": {text}" if text else "")


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # griffe would like annotations, which are left out here
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE)
