"""The levels of the package: who may import whom, how long files and functions may be."""

import ast
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sklvebm"
FILES = sorted(ROOT.rglob("*.py"))

# From the bottom up, by folder ("" is the package): a file or folder imports from lines above its
# own only. "." are the files of a folder that its other lines do not name.
LEVELS = {
    "": [
        [
            "adam",
            "confidence",
            "files",
            "deprecation",
            "documentation",
            "exceptions",
            "kept_results",
            "messages",
            "notebook",
            "recordings",
            "row_blocks",
            "row_sources",
            "threads",
            "validation",
            "versions",
            "mcmc",
        ],
        ["communication", "optimisation", "row_weights", "trees"],
        ["training_course", "updates"],
        ["checkpointing", "runtime", "training", "smc", "datasets", "metrics"],
        ["by_rows", "preprocessing"],
        ["mixtures"],
        ["latent_maps"],
        ["models"],
        ["kernels"],
        ["backends"],
        ["inference"],
        ["flows"],
        ["objectives"],
        ["estimators"],
        ["applications", "baselines"],
        ["persistence", "plotting"],
        ["."],
    ],
    "mcmc": [["state", "diagnostics"], ["langevin", "tempering"], ["adaptation"]],
    "smc": [["resampling", "free_energy", "quasi_random"], ["annealing"], ["log_partition"]],
    "mixtures": [
        ["components", "factor_analysis", "policy", "starts"],
        ["reference", "expectation_maximization"],
        ["reference_check", "missing_cells", "row_frames"],
        ["missing_fit", "search"],
        ["stacking"],
        ["choice", "column_densities"],
        ["margins", "reference_selection"],
        ["final_reference"],
    ],
    "preprocessing": [
        ["margins", "splitting", "value_steps"],
        ["scaling"],
        ["moments", "prepared", "dequantization"],
    ],
    "estimators": [["_common"], ["_ebm", "_flow"], ["."]],
    "estimators/_common": [
        ["frames", "parameters", "progress", "reading", "serialization", "stored_version"],
        ["validation"],
        [
            "config",
            "fit_on_ranks",
            "keeper_of_ranks",
            "missing_cells",
            "rows_of_ranks",
            "transactional_fit",
        ],
        ["rows_to_fit"],
        ["checkpoints"],
        ["session"],
        ["kept_ratio", "margins", "ratio_gain"],
        ["answers", "fit", "reference"],
    ],
    "estimators/_ebm": [
        ["config"],
        ["diagnostics", "fitted_model", "shared_training"],
        ["normalization"],
        ["training"],
        ["drift", "serialization"],
        ["answers", "family"],
    ],
    "estimators/_flow": [
        ["config", "fitted_model"],
        ["normalization", "shared_training"],
        ["training"],
        ["serialization"],
        ["answers", "family"],
    ],
}
# third-party module -> folders that may import it; what is not named here is the library's to use
CONFINED = {
    "triton": {"kernels"},
    # estimators and validation of arrays: scikit-learn's algorithms may serve elsewhere
    "sklearn.base.BaseEstimator": {"applications", "baselines", "estimators", "persistence"},
    "sklearn.utils": {
        "applications",
        "baselines",
        "datasets",
        "estimators",
        "metrics",
        "plotting",
        "preprocessing",
        "validation",
    },
}
THIRD_PARTY_OF_MCMC = {"torch"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_SHARE_OF_A_FOLDER = 0.25
MAX_POSITIONAL = 5


def module_of(path):
    """Return the name of a file's module within the package, such as "mcmc.state"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer_of(path):
    return place_of(module_of(path), "")


def place_of(module, folder):
    """Return the file or folder of `folder` that a module is in, "." for those without a line."""
    parts, above = module.split("."), folder.split("/") if folder else []
    if parts[: len(above)] != above or len(parts) == len(above):
        return None
    place = parts[len(above)]
    return place if any(place in line for line in LEVELS[folder]) else "."


def level_of(place, folder):
    return next(n for n, line in enumerate(LEVELS[folder]) if place in line)


def imported_modules(tree):
    """Yield each import statement's node with the full names that it may bind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            # `from sklvebm.models import energies` imports a module as well
            yield node, [f"{node.module}.{alias.name}" for alias in node.names]


def own_imports(tree):
    """Return the modules of the package that a file imports, without the package's name."""
    names = {name for _, modules in imported_modules(tree) for name in modules}
    return {name.removeprefix("sklvebm.") for name in names if name.startswith("sklvebm.")}


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


@pytest.mark.parametrize("folder", LEVELS)
def test_every_name_in_the_levels_exists_once(folder):
    names = [name for line in LEVELS[folder] for name in line]
    assert len(names) == len(set(names))
    for name in set(names) - {"."}:
        assert (ROOT / folder / name).is_dir() or (ROOT / folder / f"{name}.py").is_file(), name
    if "." not in names:
        found = {place_of(module_of(path), folder) for path in FILES if path.stem != "__init__"}
        assert "." not in found, "a file without a line"


@every_file
def test_imports_go_downwards_only(path):
    module = module_of(path)
    for folder in LEVELS:
        own = place_of(module, folder)
        if own is None:
            continue
        for other in own_imports(parsed(path)):
            place = place_of(other, folder)
            if place in (None, own):
                continue
            assert level_of(place, folder) < level_of(own, folder), f"{module} imports {other}"


def test_no_two_files_import_each_other():
    imports = {module_of(path): own_imports(parsed(path)) for path in FILES}
    known = {
        module: {other for other in imports if any(f"{n}.".startswith(f"{other}.") for n in names)}
        for module, names in imports.items()
    }
    both = [(a, b) for a, b in combinations(known, 2) if a in known[b] and b in known[a]]
    assert not both


@every_file
def test_kernels_are_imported_lazily_by_backends_only(path):
    tree = parsed(path)
    assert not {name for name in imported_at_start(tree) if name.startswith("sklvebm.kernels")} or (
        layer_of(path) == "kernels"
    )
    if any(name.startswith("kernels") for name in own_imports(tree)):
        assert layer_of(path) in {"backends", "kernels"}


@every_file
def test_no_private_module_of_another_package_is_imported(path):
    names = [name for _, modules in imported_modules(parsed(path)) for name in modules]
    others = [name for name in names if not name.startswith(("sklvebm", "__future__"))]
    assert not [name for name in others if any(part[0] == "_" for part in name.split("."))]


@every_file
def test_confined_packages_stay_in_their_layers(path):
    names = {name for _, modules in imported_modules(parsed(path)) for name in modules}
    for package, layers in CONFINED.items():
        imports = any(f"{name}.".startswith(f"{package}.") for name in names)
        assert not imports or layer_of(path) in layers, f"{package} in {relative(path)}"


def test_no_folder_holds_more_than_its_share():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    folders = {path.parent for path in FILES} - {ROOT}
    for folder in folders:
        share = sum(n for path, n in lines.items() if folder in path.parents) / sum(lines.values())
        assert share <= MAX_SHARE_OF_A_FOLDER, relative(folder)


@pytest.mark.parametrize("path", [f for f in FILES if layer_of(f) == "mcmc"], ids=relative)
def test_mcmc_needs_torch_and_the_standard_library_only(path):
    standard = {"__future__", "abc", "collections", "functools", "math", "typing"}
    packages = imported_packages(parsed(path)) - standard - {"sklvebm"}
    assert packages <= THIRD_PARTY_OF_MCMC


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


@every_file
def test_functions_take_few_positional_arguments(path):
    if "triton" in imported_packages(parsed(path)):
        return  # its kernels know no others
    functions = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.FunctionDef)]
    numbers = {
        n.name: len([a for a in n.args.posonlyargs + n.args.args if a.arg not in ("self", "cls")])
        for n in functions
    }
    assert not {name: n for name, n in numbers.items() if n > MAX_POSITIONAL}


@pytest.mark.parametrize("path", [f for f in FILES if f.stem == "__init__"], ids=relative)
def test_every_folder_says_what_is_in_it(path):
    summary = ast.get_docstring(parsed(path))
    assert summary is not None
    assert len(summary.split()) >= 4
    assert "TODO" not in summary
