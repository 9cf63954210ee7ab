"""The layers of the package: who may import whom, and how long files and functions may be."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sklvebm"
FILES = sorted(ROOT.rglob("*.py"))

# layer -> layers that it may import; "." is the package's own `__init__`
ALLOWED = {
    "exceptions": set(),
    "particles": set(),
    "thread_limits": set(),
    "convergence": set(),
    "versions": set(),
    "validation": set(),
    "components": {"particles"},
    "reference": {"components", "particles"},
    "charts": set(),
    "reach": set(),
    "energies": {"charts", "reach", "reference"},
    "gradients": {"charts", "components", "energies", "particles", "reference"},
    "dynamics": {"particles"},
    "kernels": {"energies", "gradients", "particles"},
    "backends": {"energies", "gradients", "kernels"},
    "log_partition": {"dynamics", "particles"},
    "rare_components": {
        "energies",
        "gradients",
        "log_partition",
        "particles",
        "reference",
        "thread_limits",
    },
    "independent_check": {
        "dynamics",
        "energies",
        "log_partition",
        "particles",
        "rare_components",
        "reference",
    },
    "equilibration": {"dynamics", "energies", "log_partition", "particles", "rare_components"},
    "inference": {
        "backends",
        "charts",
        "components",
        "dynamics",
        "energies",
        "gradients",
        "log_partition",
        "particles",
        "rare_components",
        "reference",
    },
    "convolutions": {"energies"},
    "compositions": {
        "components",
        "equilibration",
        "gradients",
        "log_partition",
        "particles",
        "rare_components",
        "reference",
    },
    "noised_mixture": {"components", "reference"},
    "potentials": {"convolutions", "dynamics", "energies", "noised_mixture"},
    "potential_slices": {
        "dynamics",
        "equilibration",
        "gradients",
        "log_partition",
        "particles",
        "potentials",
        "rare_components",
        "reference",
    },
    "variational": {"backends", "energies", "log_partition", "particles"},
    "objectives": {
        "backends",
        "dynamics",
        "energies",
        "gradients",
        "log_partition",
        "noised_mixture",
        "particles",
        "potentials",
        "rare_components",
        "reference",
        "thread_limits",
        "variational",
    },
    "training": {"exceptions", "particles"},
    "estimators": {
        "backends",
        "charts",
        "components",
        "compositions",
        "convergence",
        "convolutions",
        "dynamics",
        "energies",
        "exceptions",
        "gradients",
        "independent_check",
        "inference",
        "log_partition",
        "noised_mixture",
        "objectives",
        "particles",
        "potential_slices",
        "potentials",
        "rare_components",
        "reach",
        "reference",
        "thread_limits",
        "training",
        "validation",
    },
    "datasets": {"validation"},
    "metrics": {"validation"},
    "baselines": {
        "dynamics",
        "energies",
        "estimators",
        "log_partition",
        "particles",
        "thread_limits",
        "training",
    },
    ".": {
        "charts",
        "convolutions",
        "energies",
        "estimators",
        "exceptions",
        "log_partition",
        "reference",
        "versions",
    },
}
# third-party package -> layers that may import it; packages not named here are the library's to use
CONFINED = {
    "sklearn": {"baselines", "datasets", "estimators", "metrics", "validation"},
    "triton": {"kernels"},
}
THIRD_PARTY_OF_DYNAMICS = {"torch"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def layer_of(path):
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "." if first == "__init__" else first


def imported_modules(tree):
    """Yield each import statement's node with the full names that it may bind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # `from sklvebm import energies` imports a layer as well
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield node, names if node.module == "sklvebm" else [node.module]


def imported_layers(tree):
    """Return the layers of the package that a file imports, wherever in the file."""
    names = {name for _, modules in imported_modules(tree) for name in modules}
    return {name.split(".")[1] for name in names if name.startswith("sklvebm.")}


def imported_packages(tree):
    """Return the top-level packages that a file imports, wherever in the file."""
    return {name.split(".")[0] for _, modules in imported_modules(tree) for name in modules}


def imported_at_start(tree):
    """Return the full names imported when the module is, not later inside a function."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, functions)
        for inner in ast.walk(outer)
    }
    return {
        name for node, modules in imported_modules(tree) if id(node) not in late for name in modules
    }


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


every_file = pytest.mark.parametrize("path", FILES, ids=relative)


def test_every_layer_has_a_place_in_the_dictionary():
    assert {layer_of(path) for path in FILES} == set(ALLOWED)


def test_the_allowed_imports_have_no_cycle():
    remaining = dict(ALLOWED)
    while remaining:
        lowest = {name for name, below in remaining.items() if not below & set(remaining)}
        assert lowest, f"cycle among {sorted(remaining)}"
        remaining = {name: below for name, below in remaining.items() if name not in lowest}


@every_file
def test_imports_go_downwards_only(path):
    layer = layer_of(path)
    forbidden = imported_layers(parsed(path)) - ALLOWED[layer] - {layer}
    assert not forbidden, f"{layer} imports {sorted(forbidden)}"


@every_file
def test_kernels_are_imported_lazily_by_backends_only(path):
    tree = parsed(path)
    assert not {name for name in imported_at_start(tree) if name.startswith("sklvebm.kernels")} or (
        layer_of(path) == "kernels"
    )
    if "kernels" in imported_layers(tree):
        assert layer_of(path) in {"backends", "kernels"}


@every_file
def test_no_private_module_of_another_package_is_imported(path):
    others = [
        name
        for _, modules in imported_modules(parsed(path))
        for name in modules
        if not name.startswith(("sklvebm", "__future__"))
    ]
    private = [name for name in others if any(part[0] == "_" for part in name.split("."))]
    assert not private
    named = [
        alias.name
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "sklearn"
        for alias in node.names
    ]
    assert not [name for name in named if name.startswith("_")]


@every_file
def test_confined_packages_stay_in_their_layers(path):
    packages = imported_packages(parsed(path))
    for package, layers in CONFINED.items():
        assert package not in packages or layer_of(path) in layers, f"{package} in {relative(path)}"


@pytest.mark.parametrize("path", [f for f in FILES if layer_of(f) == "dynamics"], ids=relative)
def test_dynamics_need_torch_and_the_standard_library_only(path):
    standard = {"__future__", "abc", "collections", "functools", "math", "typing"}
    packages = imported_packages(parsed(path)) - standard - {"sklvebm"}
    assert packages <= THIRD_PARTY_OF_DYNAMICS


@every_file
def test_matplotlib_is_not_imported_at_module_level(path):
    assert "matplotlib" not in {name.split(".")[0] for name in imported_at_start(parsed(path))}


@every_file
def test_files_stay_short(path):
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_FILE_LINES


def body_length(function):
    """Return the lines of a function's body, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@every_file
def test_functions_stay_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {n.name: body_length(n) for n in ast.walk(parsed(path)) if isinstance(n, functions)}
    too_long = {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}
    assert not too_long
