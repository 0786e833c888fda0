"""The site: `python -m sphinx -W --keep-going -b html docs docs/_build`. It is built without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnjax
from experiments.results.study_page import save_all
from experiments.studies import NOT_YET, all_studies

project = "bnjax"
author = "the bnjax developers"
version = release = bnjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
default_role = "code"  # a name in single backticks, as in our docstrings

myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the docstrings say what an argument is
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are members already
napoleon_use_rtype = False

intersphinx_mapping: dict[str, tuple[str, str]] = {}


def setup(app: object) -> None:
    """The pages of the studies, which are HTML by themselves, lie beside the page that lists them."""

    def save(app: object, error: Exception | None) -> None:
        if error is None and app.builder.name == "html":  # type: ignore[attr-defined]
            save_all(Path(app.outdir) / "results" / "studies", all_studies(), NOT_YET)  # type: ignore[attr-defined]

    app.connect("build-finished", save)  # type: ignore[attr-defined]


html_theme = "furo"
html_title = f"bnjax {version}"
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
