"""The site: `python -m sphinx -W --keep-going -b html docs docs/_build`. It is built without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnjax

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

html_theme = "furo"
html_title = f"bnjax {version}"
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
