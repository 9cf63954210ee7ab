"""Links from estimators to their pages of the documentation."""

import importlib.metadata
import os

_VARIABLE = "SKLVEBM_DOCUMENTATION"


def documentation_url() -> str:
    """Return the address of the documentation site, "" if none is known.

    The environment variable `SKLVEBM_DOCUMENTATION`, such as `file:///home/me/site`, comes before
    the address that the installed package names.
    """
    if _VARIABLE in os.environ:
        return _escaped(os.environ[_VARIABLE])
    try:
        urls = importlib.metadata.metadata("sklvebm").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:  # a copy of the folder
        return ""
    named = dict(url.split(", ", 1) for url in urls)
    return _escaped(named.get("Documentation", ""))


def _escaped(url: str) -> str:
    """Return an address without what scikit-learn would take for a place to fill in."""
    return url.rstrip("/").replace("{", "%7B").replace("}", "%7D")


class LinksToDocumentation:
    """Link the HTML representation of an estimator to its page of the API reference."""

    # scikit-learn links classes of this package only, so that those of users have no dead link
    _doc_link_module = "sklvebm"

    @property
    def _doc_link_template(self) -> str:
        url = documentation_url()
        package = "sklvebm.baselines" if ".baselines." in type(self).__module__ else "sklvebm"
        return url and f"{url}/api/generated/{package}.{type(self).__name__}.html"
