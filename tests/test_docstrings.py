"""Docstrings of the public names, judged by numpydoc's own rules, and their annotations."""

import inspect
import pydoc
import re

import pytest
import torch
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import ERROR_MSGS, validate

import sklvebm
import sklvebm.baselines
import sklvebm.datasets
import sklvebm.metrics
import sklvebm.plotting

# All of numpydoc's rules hold for classes and functions, but for two:
# ES01, an extended summary, where the summary has said it all;
# RT02, no names for what is returned: here, as in scikit-learn, it has one.
NOT_WANTED = {"ES01", "RT02"}
# EX01, SA01: examples and pointers are those of the class
NOT_WANTED_OF_METHODS = NOT_WANTED | {"EX01", "SA01"}
# PR01, RT01: a method of a torch module says in a sentence, with shapes, what it takes and returns
NOT_WANTED_OF_MODULES = NOT_WANTED_OF_METHODS | {"PR01", "RT01"}

MODULES = (sklvebm, sklvebm.baselines, sklvebm.datasets, sklvebm.metrics, sklvebm.plotting)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
}


def defined_methods(cls):
    """Yield names and functions of the public methods of a class that the package defines."""
    for name, member in inspect.getmembers(cls):
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isroutine(function):
            origin = getattr(inspect.unwrap(function), "__module__", None) or ""
            # old names of attributes are descriptors without a docstring
            if origin.startswith("sklvebm") and hasattr(function, "__name__"):
                yield name, function


CLASSES = {name: public for name, public in PUBLIC.items() if inspect.isclass(public)}
METHODS = {
    f"{name}.{method}": (cls, method, function)
    for name, cls in CLASSES.items()
    for method, function in defined_methods(cls)
}
OF_MODULES = {
    name: function
    for name, (cls, _, function) in METHODS.items()
    if issubclass(cls, torch.nn.Module)
}


def complaints(public, not_wanted, *method):
    # where it is defined: by its public name, a function may be mistaken for the file it is in
    name = ".".join([public.__module__, public.__qualname__, *method])
    return [f"{code}: {text}" for code, text in validate(name)["errors"] if code not in not_wanted]


def is_named_tuple(public):
    return inspect.isclass(public) and issubclass(public, tuple)


every_name = pytest.mark.parametrize("public", PUBLIC.values(), ids=PUBLIC)
every_method = pytest.mark.parametrize(
    ("cls", "method"), [m[:2] for m in METHODS.values()], ids=METHODS
)


def test_the_rules_left_out_are_rules():
    assert set(ERROR_MSGS) > NOT_WANTED_OF_MODULES


def test_methods_of_classes_are_found():
    assert {"sklvebm.ParticleLVEBM.fit", "sklvebm.ParticleLVEBM.score"} < set(METHODS)
    assert {"sklvebm.TransformedDensity.sample", "sklvebm.MLPEnergy.forward"} < set(METHODS)
    assert "sklvebm.ParticleLVEBM.set_params" not in METHODS  # scikit-learn's


@every_name
def test_a_public_name_is_documented_by_the_rules(public):
    # fields of a named tuple are attributes to those who read them; a protocol is never made
    is_made = not (is_named_tuple(public) or getattr(public, "_is_protocol", False))
    fields = set() if is_made else {"PR01"}
    assert not complaints(public, NOT_WANTED | fields)


@every_method
def test_a_public_method_is_documented_by_the_rules(cls, method):
    of_module = issubclass(cls, torch.nn.Module)
    not_wanted = NOT_WANTED_OF_MODULES if of_module else NOT_WANTED_OF_METHODS
    assert not complaints(cls, not_wanted, method)


FUNCTIONS = {
    **{name: public for name, public in PUBLIC.items() if inspect.isfunction(public)},
    **{name: function for name, (*_, function) in METHODS.items()},
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_public_function_is_annotated(function):
    signature = inspect.signature(function)
    annotations = [p.annotation for p in signature.parameters.values() if p.name != "self"]
    assert inspect.Signature.empty not in [*annotations, signature.return_annotation]


@pytest.mark.parametrize("function", OF_MODULES.values(), ids=OF_MODULES)
def test_a_method_of_a_module_names_its_arguments(function):
    docstring = inspect.getdoc(function)
    arguments = [name for name in inspect.signature(function).parameters if name != "self"]
    assert not [name for name in arguments if not re.search(rf"\b{name}\b", docstring)]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES.values() if is_named_tuple(cls)])
def test_the_fields_of_a_named_tuple_are_described_in_their_order(cls):
    attributes = get_doc_object(cls)["Attributes"]
    names = [name for entry in attributes for name in entry.name.split(", ")]
    assert tuple(names) == cls._fields
    assert all(entry.desc for entry in attributes)


def is_there(target):
    """Tell whether a name of See Also is one of the package's public names, or a full path."""
    first, *others = target.split(".")
    for module in MODULES:
        if first in module.__all__:
            return all(hasattr(getattr(module, first), name) for name in others)
    return pydoc.locate(target) is not None


@every_name
def test_see_also_names_real_objects(public):
    entries = get_doc_object(public)["See Also"]
    targets = [target for names, _ in entries for target, _ in names]
    assert targets
    assert not [target for target in targets if not is_there(target)]


@pytest.mark.parametrize(
    "estimator",
    [sklvebm.ParticleLVEBM, sklvebm.PotentialFlowEBM, sklvebm.WassersteinFlowEBM],
)
def test_research_options_follow_the_parameters_that_users_set(estimator):
    entries = get_doc_object(estimator)["Parameters"]
    borders = [entry.name for entry in entries if "research options" in " ".join(entry.desc)]
    assert borders == ["random_state"]
    names = [entry.name for entry in entries]
    first, research = names[: names.index("random_state")], names[names.index("random_state") + 1 :]
    assert {"hidden_layer_sizes", "reference", "max_iter", "early_stopping"} <= set(first)
    assert {"activation", "learning_rate_init", "alpha", "dtype"} <= set(research)
