"""The Julia engine: the bundled Julia project, driven through juliacall."""

from pydeq.engines.julia import runtime
from pydeq.engines.julia.cells import draw_cell
from pydeq.engines.julia.engine import JuliaEngine, missing_on_gpu
from pydeq.engines.julia.environment import bundled_project, find_julia
from pydeq.engines.julia.install import install_julia, julia_status
from pydeq.engines.julia.probe import check_ends

__all__ = [
    "JuliaEngine",
    "bundled_project",
    "check_ends",
    "draw_cell",
    "find_julia",
    "install_julia",
    "julia_status",
    "missing_on_gpu",
    "runtime",
]
