"""The law of the layers: a module imports only from folders above its own, without a circle.

Between folders only what a folder's ``__init__`` exports is imported.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pydeq"
FLOORS = [
    {"errors", "shapes", "cell_function"},
    {"layers"},
    {"model"},
    {"engines"},
    {"training"},
    {"estimators", "fixed_points", "datasets"},
    {"presets", "plot"},
    {"compare"},
    {"cli"},
]
FLOOR = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}
# Packages whose own modules alone reach past what their __init__ exports.
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def imports(module):
    """Yield each name that the module imports from pydeq, dotted and without ``pydeq.``."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pydeq."):
            yield from (f"{node.module[6:]}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "pydeq":
            yield from (alias.name for alias in node.names if alias.name != "__version__")


def home(name):
    """Return the module that an imported name lies in, or is."""
    return name if name in MODULES else name.rpartition(".")[0]


def exported(package):
    tree = ast.parse(MODULES[package].read_text(encoding="utf-8"))
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )


def test_every_module_has_a_floor():
    assert {module.split(".")[0] for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_above(module):
    own = module.split(".")[0]
    for name in imports(module):
        folder = name.split(".")[0]
        assert folder == own or FLOOR[folder] < FLOOR[own], f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_what_an_init_does_not_export_is_private(module):
    for name in imports(module):
        for package in PACKAGES:
            inside = module == package or module.startswith(f"{package}.")
            if name.startswith(f"{package}.") and not inside:
                rest = name.removeprefix(f"{package}.")
                first = rest.split(".")[0]
                assert f"{package}.{first}" in PACKAGES or rest in exported(package), (
                    f"{module} imports {name}, which {package} does not export"
                )


def test_no_circle():
    graph = {module: {home(name) for name in imports(module)} - {module} for module in MODULES}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle runs through some of {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def test_no_underscored_module():
    assert not [path for path in ROOT.rglob("_*.py") if path.name != "__init__.py"]


def test_engines_do_not_import_each_other():
    for module in MODULES:
        for name in imports(module):
            pair = {module.rpartition("engines.")[2].split(".")[0] for _ in [0]} | {
                name.rpartition("engines.")[2].split(".")[0]
            }
            if module.startswith("engines.") and name.startswith("engines."):
                assert pair != {"jax", "julia"}, f"{module} imports {name}"
