"""How Sphinx makes the site; `scripts/build_site.py` lays its sources out and runs it."""

from typing import Any

from sphinx.application import Sphinx

project = "SASA"
author = "the authors of sasa-lib"
html_title = "SASA"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
]

# The notebooks are shown as they were executed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_heading_anchors = 3

# Types stand in the docstrings. A word in single backticks is code there.
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autosummary_generate = False
autodoc_mock_imports = ["inspect_ai", "lm_eval"]  # which the site does without
suppress_warnings = ["ref.python"]  # a type in a docstring may bear the name of two attributes
default_role = "literal"
napoleon_google_docstring = False
napoleon_use_rtype = False

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Everything that a page needs lies in the site: nothing is loaded from elsewhere.
mathjax_path = "mathjax.js"
mathjax3_config = {"options": {"enableMenu": False}}
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_search_summary = False  # they are fetched, which a browser refuses in pages from a file
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": [], "navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"


def setup(app: Sphinx) -> None:
    """Take |w| in a docstring for what it is, not for a substitution."""

    def literal_bars(*event: Any) -> None:
        lines = event[-1]
        lines[:] = [line if "``" in line else line.replace("|", r"\|") for line in lines]

    app.connect("autodoc-process-docstring", literal_bars)
