"""How Sphinx makes the site: `make docs`. Nothing of a page is fetched from elsewhere, so it reads the same offline."""

from __future__ import annotations

from typing import Any, cast

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

import fusedopt

project = "fusedopt"
author = "The fusedopt authors"
copyright = author
version = release = fusedopt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # benchmarks/README.md is included below a heading of its page

# Single backticks in docstrings are code.
default_role = "literal"
smartquotes_action = "D"  # dashes; "float32" stays as it is typed
toc_object_entries = False
# 1e-3, not 0.001; and the names of types, not their modules.
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_title = f"fusedopt {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def visit_math(translator: Any, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw by themselves: no script, no font and no server of somebody else's."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    formula = latex2mathml.converter.convert(node.astext(), display=cast(Any, display))
    tag = "span" if display == "inline" else "div"
    translator.body.append(f'<{tag} class="math">{formula}</{tag}>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))


html_math_renderer = "mathml"
