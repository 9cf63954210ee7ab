"""What a fitted model shows at the prompt, in notebooks, and where its page is."""

import math
import re
from importlib import metadata

import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklvebm import (
    DensityOutlierDetector,
    GaussianMargins,
    LogPartition,
    MixtureStack,
    ParticleImputer,
    ParticleLVEBM,
    baselines,
)
from sklvebm.documentation import documentation_url
from sklvebm.notebook import report_as_html


def cells(html):
    """Return the labels and texts of a table."""
    return re.findall(r"<th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td>", html)


def test_a_report_becomes_a_table_with_escaped_text():
    report = f"{'verdict':20s}check: a < b & c\n{'log Z, from below':20s}0.1 nats"
    html = report_as_html("Title <b>", report)
    assert cells(html) == [
        ("verdict", "check: a &lt; b &amp; c"),
        ("log Z, from below", "0.1 nats"),
    ]
    assert "Title &lt;b&gt;</caption>" in html


@pytest.mark.parametrize(
    ("line", "colours"),
    [("sound", ["#2e7d32"]), ("check: wide", ["#c62828"])],
)
def test_the_colour_of_the_verdict_tells_whether_something_is_wrong(line, colours):
    html = report_as_html("", f"{'verdict':20s}{line}\n{'walkers':20s}3")
    assert re.findall(r"#\w{6}", html) == colours
    assert "background" not in html  # readable on dark pages, too


def test_diagnostics_are_readable_at_the_prompt_and_in_notebooks(fitted):
    shown = fitted.diagnostics_
    assert repr(shown) == f"Diagnostics\n{shown.report()}"
    found = dict(cells(shown._repr_html_()))
    assert found["verdict"] == shown.verdict
    assert found["walkers"].startswith(f"{shown.walker_sample_size:.0f} of {shown.n_walkers} ")
    assert tuple(shown) == tuple(getattr(shown, name) for name in shown._fields)


def test_diagnostics_of_a_reference_do_not_list_zeros(small, moons):
    shown = small(max_iter=0).fit(moons).diagnostics_
    assert [line[:20].strip() for line in str(shown).splitlines()[1:]] == [
        "verdict",
        "log Z",
        "reference",
    ]
    assert "the model is its reference" in shown.report()


def test_diagnostics_of_a_flow_are_readable(fitted_flow):
    shown = fitted_flow.diagnostics_
    assert dict(cells(shown._repr_html_()))["integrator"].startswith(f"{shown.n_steps} steps")
    assert "log Z of energy     bracket" in repr(shown)
    without = shown._replace(n_walkers=0, walker_sample_size=math.inf)
    assert "log Z of energy     0, exactly" in without.report()


def test_problems_are_listed_with_their_remedies(fitted):
    shown = fitted.diagnostics_._replace(rhat=2.0)
    found = cells(shown._repr_html_())
    assert [text for label, text in found if label == "problem"] == shown.problems()


def test_a_bracket_is_readable():
    bracket = LogPartition(0.1234, 0.1, 0.2, 0.01, 150.2)
    assert str(bracket).splitlines() == [
        "log Z               0.123 +- 0.010 nats",
        "bracket             0.100 to 0.200 nats, 0.100 wide",
        "walkers             150 effective",
    ]
    assert dict(cells(bracket._repr_html_()))["walkers"] == "150 effective"
    assert repr(bracket).startswith("LogPartition(value=0.1234,")
    exact = LogPartition(0.0, 0.0, 0.0, 0.0, math.inf)
    assert str(exact) == "log Z               0.000 nats, exactly"


def test_a_reference_tells_its_sizes(mixture_reference):
    reference = mixture_reference(n_components=4, defensive_weight=0.1)
    found = dict(cells(reference._repr_html_()))
    assert found["features"] == "3, standardised"
    assert found["latents"] == "0"
    weights = reference.log_weights.double().exp()
    n_equal = torch.exp(-(weights * weights.log()).sum())
    assert found["components"] == f"4, as many as {n_equal:.0f} of equal weight"
    assert found["covariances"] == "5, full"
    assert found["defensive"] == "1 components of weight 0.1 together"
    assert repr(reference) == (
        "MixtureReference(n_components=5, n_covariances=5, n_features=3, n_latents=0)"
    )


ESTIMATORS = [
    ParticleLVEBM(),
    MixtureStack(),
    GaussianMargins(),
    ParticleImputer(),
    DensityOutlierDetector(),
]


def test_there_is_no_link_where_no_site_is_known(monkeypatch):
    monkeypatch.delenv("SKLVEBM_DOCUMENTATION", raising=False)
    monkeypatch.setattr(metadata, "metadata", lambda name: Message(None))
    assert documentation_url() == ""
    assert {model._get_doc_link() for model in ESTIMATORS} == {""}


class Message:
    """Metadata of a package."""

    def __init__(self, urls):
        self.urls = urls

    def get_all(self, key):
        return self.urls if key == "Project-URL" else None


def test_the_address_is_that_of_the_metadata_unless_a_variable_names_another(monkeypatch):
    monkeypatch.delenv("SKLVEBM_DOCUMENTATION", raising=False)
    urls = ["Paper, https://example.org/a", "Documentation, https://example.org/docs/"]
    monkeypatch.setattr(metadata, "metadata", lambda name: Message(urls))
    assert documentation_url() == "https://example.org/docs"
    monkeypatch.setenv("SKLVEBM_DOCUMENTATION", "file:///home/me/site/")
    assert documentation_url() == "file:///home/me/site"


@pytest.mark.parametrize("model", ESTIMATORS, ids=lambda model: type(model).__name__)
def test_estimators_link_to_their_pages(model, monkeypatch):
    monkeypatch.setenv("SKLVEBM_DOCUMENTATION", "https://example.org/{docs}")
    page = f"https://example.org/%7Bdocs%7D/api/generated/sklvebm.{type(model).__name__}.html"
    assert model._get_doc_link() == page
    assert page in model._repr_html_()
    assert page in make_pipeline(StandardScaler(), clone(model))._repr_html_()


def test_baselines_and_subclasses_link_to_their_own_pages_or_none(monkeypatch):
    monkeypatch.setenv("SKLVEBM_DOCUMENTATION", "https://example.org")
    page = "https://example.org/api/generated/sklvebm.baselines.VAE.html"
    assert baselines.VAE()._get_doc_link() == page

    class Mine(MixtureStack):
        """A class of a user, without a page."""

    assert Mine()._get_doc_link() == ""
