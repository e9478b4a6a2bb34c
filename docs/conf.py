"""The documentation site: Markdown pages by MyST, the reference from docstrings. From a clone, with the extra `docs`:

    python -m sphinx -W --keep-going docs out/docs

Nothing is fetched: no other project's index, no fonts, no scripts from elsewhere.
"""

import chinchilla_lm

project = "Chinchilla"
author = "the authors of Chinchilla"
version = release = chinchilla_lm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns: list[str] = []
myst_heading_anchors = 3
default_role = "code"  # single backticks in docstrings are code, as in Markdown
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False

html_theme = "alabaster"
html_theme_options = {"description": "Shortens pretrained transformers, and proves that they are still as good"}
html_copy_source = False
