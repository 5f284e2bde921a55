"""How Sphinx builds the site. The chapters come to it executed."""

import soaa_edu

project = "Second-order optimization in JAX"
author = "the soaa_edu authors"
copyright = f"{author}; text and figures under CC BY 4.0, code under the MIT license"
version = release = soaa_edu.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.bibtex",
    "sphinx-mathjax-offline",  # after sphinx.ext.mathjax, whose path it sets
]

nb_execution_mode = "off"
nb_ipywidgets_js = {}  # by default addresses on the network
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
mathjax4_config = {"chtml": {"displayAlign": "center"}}

autodoc_default_options = {"no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 88

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "plain"

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the sidebar
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
}


def skip_tuple_fields(app, what, name, obj, skip, options):
    """The fields of a NamedTuple: its docstring describes them under Attributes."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", skip_tuple_fields)
