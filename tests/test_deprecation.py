"""Old names work, warn with the new one at the caller's line, and are gone when promised."""

import inspect

import pytest
import torch

import sklvebm
from sklvebm import MixtureReference
from sklvebm.deprecation import Renamed, RenamedAttribute, renamed_names, renamed_parameters
from sklvebm.estimators._ebm.diagnostics import Diagnostics
from sklvebm.mixtures.reference import RENAMED_PARAMETERS


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.mark.parametrize("old", sklvebm._RENAMED)
def test_an_old_public_name_warns_and_gives_the_new_one(old):
    new = sklvebm._RENAMED[old].new
    with pytest.warns(FutureWarning, match=rf"sklvebm\.{old} is called sklvebm\.{new} now") as seen:
        found = getattr(sklvebm, old)
    assert found is getattr(sklvebm, new)
    assert seen[0].filename == __file__
    assert old not in sklvebm.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Transmogrifier'"):
        sklvebm.Transmogrifier  # noqa: B018


def test_an_old_attribute_warns_and_reads_the_new_one():
    class Record:
        new = 3
        old = RenamedAttribute("old", "new", "9.0")

    with pytest.warns(FutureWarning, match=r"Record\.old is called Record\.new now") as seen:
        assert Record().old == 3
    assert seen[0].filename == __file__
    assert isinstance(Record.old, RenamedAttribute)


def test_nothing_outlives_the_release_that_was_promised():
    attributes = [
        value
        for owner in (Diagnostics, MixtureReference)
        for _, value in inspect.getmembers(owner)
        if isinstance(value, RenamedAttribute)
    ]
    assert attributes
    promised = [
        *sklvebm._RENAMED.values(),
        *RENAMED_PARAMETERS.values(),
        *(attribute.renamed for attribute in attributes),
    ]
    for renamed in promised:
        assert version(sklvebm.__version__) < version(renamed.removed_in), renamed


def test_the_mechanism_serves_any_module():
    find = renamed_names("module", {"old": Renamed("new", "9.0")}, {"new": "value"})
    with pytest.warns(FutureWarning, match="removed in version 9.0"):
        assert find("old") == "value"


def test_old_keyword_arguments_warn_and_mean_the_new_ones():
    @renamed_parameters("twice", {"old": Renamed("new", "9.0")})
    def twice(new):
        return 2 * new

    with pytest.warns(FutureWarning, match=r"twice\.old is called twice\.new now") as seen:
        assert twice(old=3) == 6
    assert seen[0].filename == __file__
    with pytest.raises(TypeError, match="both new and its old name old"):
        twice(old=3, new=3)


def test_a_reference_takes_and_gives_the_old_names_of_its_defensive_components():
    one = torch.eye(2, dtype=torch.float64)
    given = (torch.ones(1), torch.zeros(1, 2), one[None])
    maps = {"latent_map": one, "latent_variance": torch.ones(2), "location": torch.zeros(2)}
    with pytest.warns(FutureWarning, match="defensive_weight now"):
        old = MixtureReference(*given, **maps, wide_weight=0.1, wide_covariance=9.0 * one)
    new = MixtureReference(*given, **maps, defensive_weight=0.1, defensive_covariance=9.0 * one)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(old.log_marginal(x), new.log_marginal(x))
    with pytest.warns(FutureWarning, match="n_defensive now"):
        assert old.n_wide == new.n_defensive == 1
