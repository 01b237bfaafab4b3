"""Sphinx configuration; the site builds without network: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

import omniconv

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "omniconv"
author = "omniconv developers"
project_copyright = "omniconv developers"
version = release = omniconv.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "generate",
    "mathematics",
]
# texts that generated pages take in
exclude_patterns = ["benchmarks/results", "families", "generated/gallery.md", "generated/speed"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"omniconv {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("gallery.js", {"defer": "defer"})]
html_math_renderer = "mathml"
