"""Sphinx: python -m sphinx -W -b html docs build/docs"""

import importlib.metadata

project = "fastsoftmax"
copyright = "the fastsoftmax developers"
release = importlib.metadata.version("fastsoftmax")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"fastsoftmax {release}"

# The docstrings name types themselves, and single backticks in them name parameters.
autodoc_typehints = "none"
default_role = "py:obj"
myst_heading_anchors = 2
