"""The documentation site: `python -m sphinx -W -b html docs docs/_build/html`.

Everything works without a network: MathJax is copied beside the pages.
"""

import importlib
import importlib.util
import inspect
import os
import shutil
import warnings
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import sklvebm

os.environ.setdefault("MPLBACKEND", "Agg")

project = "sklvebm"
author = "The sklvebm developers"
copyright = author
release = version = sklvebm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "README.md"]
templates_path = ["_templates"]

# Markdown -----------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 5
# API ----------------------------------------------------------------------------------------------

autosummary_generate = True


def is_ours(module, name, member):
    """Return whether a class's method comes from this package, not from torch or scikit-learn."""
    method = getattr(getattr(importlib.import_module(module), name), member, None)
    method = method.fget if isinstance(method, property) else method
    return (getattr(inspect.unwrap(method), "__module__", None) or "").startswith("sklvebm")


autosummary_context = {"is_ours": is_ours}
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
# a word in single quotes is a link where it names something, otherwise code
default_role = "py:obj"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False
# references at the end of a docstring need not be cited in it
suppress_warnings = ["ref.citation", "config.cache"]

# Gallery ------------------------------------------------------------------------------------------

_ORDER = [
    "plot_estimators.py",
    "plot_density.py",
    "plot_pairs.py",
    "plot_outliers.py",
    "plot_missing_cells.py",
    "plot_samples.py",
    "plot_calibration.py",
    "plot_latents.py",
    "plot_training.py",
    "plot_composition.py",
    "plot_rounded_columns.py",
    "plot_images.py",
    "plot_energies.py",
    "plot_baselines.py",
    "plot_metrics.py",
    "plot_datasets.py",
    "plot_exact_densities.py",
    "plot_stored_models.py",
]
# `SKLVEBM_GALLERY=density` executes the scripts whose names match only
_EXECUTED = os.environ.get("SKLVEBM_GALLERY", "")
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": f"plot_.*{_EXECUTED}",
    "ignore_pattern": r"^(?!.*plot_)",
    "within_subsection_order": ExplicitOrder(_ORDER),
    "backreferences_dir": "api/backreferences",
    "doc_module": ("sklvebm",),
    "reference_url": {"sklvebm": None},
    "inspect_global_variables": True,
    "show_memory": False,
    # that page loads scripts from the network
    "write_computation_times": False,
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "capture_repr": (),
    "copyfile_regex": "",
    "image_scrapers": ("matplotlib",),
    "matplotlib_animations": False,
}
# their pages should show results
warnings.filterwarnings("error", category=UserWarning, module="sklvebm")

# Pages --------------------------------------------------------------------------------------------

html_theme = "pydata_sphinx_theme"
html_title = f"sklvebm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "sklvebm"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    # fonts of icons come with the theme
    "icon_links": [],
}
html_sidebars = {"index": [], "getting_started/**": ["sidebar-nav-bs"]}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# MathJax ------------------------------------------------------------------------------------------

_MATHJAX = importlib.util.find_spec("sphinx-mathjax-offline")
if _MATHJAX is not None:
    mathjax_path = "mathjax/tex-chtml.js"
    mathjax3_config = {"tex": {"tags": "none"}, "chtml": {"mtextInheritFont": True}}


def copy_mathjax(app, error):
    """Copy the part of MathJax that the pages use, fonts included, beside them."""
    if error is not None or _MATHJAX is None or app.builder.format != "html":
        return
    source = Path(_MATHJAX.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "tex-chtml.js", target)
    fonts = Path("output") / "chtml" / "fonts"
    shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)


def setup(app):
    app.connect("build-finished", copy_mathjax)
