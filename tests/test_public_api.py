"""The public names, and whether signature, docstring and project file tell the same story."""

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sklvebm
from sklvebm import ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM

ROOT = Path(__file__).parents[1]
ESTIMATORS = (ParticleLVEBM, PotentialFlowEBM, WassersteinFlowEBM)
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def test_public_names_are_sorted_and_listed_once():
    assert sklvebm.__all__ == sorted(set(sklvebm.__all__))


@pytest.mark.parametrize("name", sklvebm.__all__)
def test_every_public_name_is_importable_and_documented(name):
    public = getattr(sklvebm, name)
    assert name in vars(sklvebm)
    # inherited docstrings do not count
    own = public.__doc__ if inspect.isfunction(public) else vars(public).get("__doc__", "")
    assert own.strip()


@pytest.mark.parametrize("name", sklvebm.__all__)
def test_every_public_method_is_documented(name):
    methods = inspect.getmembers(getattr(sklvebm, name), inspect.isfunction)
    # fields of named tuples and methods of torch and scikit-learn are not this package's
    ours = [m for m in methods if m[1].__module__.startswith("sklvebm") and m[0][0] != "_"]
    assert not [method for method, function in ours if not inspect.getdoc(function)]


def test_no_public_name_is_missing_from_all():
    defined = {
        name
        for name, value in vars(sklvebm).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert defined == set(sklvebm.__all__)


def test_version_is_that_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if "version" in project["project"]:
        assert project["project"]["version"] == sklvebm.__version__
    else:
        source = project["tool"]["setuptools"]["dynamic"]["version"]
        assert source == {"attr": "sklvebm.__version__"}
    assert importlib.metadata.version("sklvebm") == sklvebm.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", sklvebm.__version__)


def test_the_package_declares_that_it_is_typed():
    assert (Path(sklvebm.__file__).parent / "py.typed").is_file()


def section(docstring, title):
    """Return the entries of a numpydoc section: name to the text after the colon."""
    match = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}$|\Z)", docstring, re.M | re.S)
    entries = re.findall(r"^(\w[\w, ]*) : (.+)$", match[1], re.M)
    return {name: text for names, text in entries for name in names.split(", ")}


@every_estimator
def test_every_parameter_is_documented_in_the_order_of_the_signature(estimator):
    documented = section(inspect.getdoc(estimator), "Parameters")
    assert list(documented) == list(inspect.signature(estimator).parameters)


@pytest.mark.parametrize(
    ("estimator", "name"),
    [(e, name) for e in ESTIMATORS for name in inspect.signature(e).parameters],
)
def test_every_documented_default_is_that_of_the_signature(estimator, name):
    text = section(inspect.getdoc(estimator), "Parameters")[name]
    documented = ast.literal_eval(text.split("default=")[1])
    default = inspect.signature(estimator).parameters[name].default
    assert documented == default
    assert type(documented) is type(default)


@every_estimator
def test_all_parameters_but_the_first_are_keyword_only(estimator):
    _, *others = inspect.signature(estimator).parameters.values()
    assert {parameter.kind for parameter in others} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", ["fitted", "fitted_flow", "fitted_wasserstein"])
def test_every_documented_attribute_exists_and_every_attribute_is_documented(name, request):
    model = request.getfixturevalue(name)
    documented = set(section(inspect.getdoc(type(model)), "Attributes"))
    existing = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    # names of features exist for data frames only
    assert documented - {"feature_names_in_"} == existing


@every_estimator
def test_the_estimator_has_all_sections_of_numpydoc(estimator):
    docstring = inspect.getdoc(estimator)
    for title in ("Parameters", "Attributes", "See Also", "Notes", "References", "Examples"):
        assert re.search(rf"^{title}\n-+$", docstring, re.M), title


def test_import_starts_no_cuda_and_loads_no_optional_package():
    # scikit-learn itself may load pandas where it is installed
    code = (
        "import sys, scipy.stats, sklearn.mixture, torch\n"
        "before = set(sys.modules)\n"
        "import sklvebm\n"
        "heavy = {'matplotlib', 'pandas', 'polars', 'triton', 'skops'}\n"
        "assert not heavy & (set(sys.modules) - before)\n"
        "assert not {'matplotlib', 'polars', 'skops'} & set(sys.modules)\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert torch.get_default_dtype() is torch.float32\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_show_versions_prints_what_a_bug_report_needs(capsys):
    sklvebm.show_versions()
    printed = capsys.readouterr().out
    assert f"sklvebm {sklvebm.__version__}" in printed
    for name in ("python", "torch", "scikit-learn", "numpy", "threads"):
        assert name in printed
