"""The figure: accuracy over seconds, and evaluations per epoch; told apart without colour."""

from pathlib import Path

from matplotlib.figure import Figure

from contestants.results import Result

__all__ = ["draw"]

_LINES = {
    "pydeq": "-",
    "torchdeq": "--",
    "optimistix": "-.",
    "torch": ":",
    "julia": (0, (6, 1, 1, 1, 1, 1)),
    "preset": (0, (1, 3)),
}
_MARKERS = "osD^v<>PX*hp"
_GREYS = ("black", "0.25", "0.45", "0.6")


def draw(results: list[Result], path: Path) -> None:
    """Draw the contestants that have the common model to an image at `path`."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = [result for result in results if result.points and result.row.same_model]
    for i, result in enumerate(shown):
        style = {
            "linestyle": _LINES[result.row.family],
            "marker": _MARKERS[i % len(_MARKERS)],
            "color": _GREYS[i % len(_GREYS)],
            "markersize": 4,
            "linewidth": 1.2,
            "label": result.row.name,
        }
        points = result.points
        if result.row.family != "pydeq" or set(result.row.settings) != {"solver"}:
            # Another solver of pydeq's learns the same, in other seconds.
            accuracy = [p.verdict.accuracy for p in points]
            left.plot([p.seconds for p in points], accuracy, markevery=0.1, **style)
        evals = [sum(p.forward for p in epoch) / len(epoch) for epoch in result.epochs]
        right.plot(range(1, len(evals) + 1), evals, **style)
    left.set(
        title="Accuracy over time",
        xlabel="seconds of training",
        ylabel="test accuracy",
        xscale="log",
    )
    left.set_ylim(bottom=max(left.get_ylim()[0], 0.85), top=0.99)
    left.axhline(0.97, color="0.7", linewidth=0.8)
    right.set(
        title="Evaluations, epoch by epoch",
        xlabel="epoch",
        ylabel="evaluations a sample, forward",
        yscale="log",
    )
    right.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*right.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=130)
