"""How Sphinx makes the documentation site of the pages as they are: `make docs`.

The source directory is the root of the repository, so that a link between two pages is the same file on GitHub and
here. Nothing on the site comes from another server: tests/browser/test_site.py holds that.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from pydantic.fields import FieldInfo
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(Path(__file__).parent))

import http_pages  # noqa: E402  # beside this file

from qgstream.settings import Section  # noqa: E402
from qgstream.version import __version__  # noqa: E402

# The navigation: each page is in one group. A page that is in none is a warning, and that is an error.
NAVIGATION = {
    "Start here": ("try-it", "recipes", "examples/react/README", "glossary"),
    "Subscribe": (
        "javascript", "/qgstream/web/README", "python-client", "clients", "resuming", "why-did-my-client-disconnect",
    ),
    "Publish": ("publishing", "sources", "embedding", "extending"),
    "Operate": (
        "running", "brokers", "metrics", "alerts", "incidents", "who-is-flooding-me", "admin-api", "tuning-limits",
        "security",
    ),
    "Deploy": ("production", "kubernetes", "behind-a-proxy", "scale"),
    "Reference": (
        "http-interface", "site/public-paths", "site/admin-paths", "command-line", "site/python-server",
        "site/python-listening", "site/python-publishing", "site/python-extending", "site/python-errors",
    ),
    "The project": ("benchmarks", "architecture", "/CONTRIBUTING", "/CHANGELOG"),
}  # fmt: skip

project = "qgstream"
author = "the qgstream authors"
project_copyright = author
version = release = __version__

root_doc = "README"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**.md", "qgstream/web/README.md"]
exclude_patterns = ["**/node_modules"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

# Quotes stay as they are written: they may be part of something that is typed. Dashes are what Sphinx puts itself.
smartquotes_action = "D"
# Anchors are those of GitHub.
myst_heading_anchors = 6
# What is shown in a block of console or text need not be a program.
suppress_warnings = ["misc.highlighting_failure"]
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

# The Python API.
autodoc_default_options = {"members": True, "member-order": "bysource"}
# Docstrings have code in single backticks, as the pages have. What is a name of the reference becomes a link.
default_role = "py:obj"
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

# The theme, with the colours of the server's own pages.
html_theme = "furo"
html_title = f"qgstream {version}"
html_favicon = "favicon.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0f6e68", "color-brand-content": "#0f6e68"},
    "dark_css_variables": {"color-brand-primary": "#5cc4ba", "color-brand-content": "#5cc4ba"},
}


def _navigation() -> str:
    groups = []
    for caption, pages in NAVIGATION.items():
        paths = "\n".join(page if page.startswith("/") else f"/docs/{page}" for page in pages)
        groups.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{paths}\n```\n")
    return "\n\n" + "\n".join(groups)


def complete(_app: Sphinx, page: str, source: list[str]) -> None:
    """What a page has on the site only: the first one the navigation, and two their tables."""
    if page == root_doc:
        source[0] += _navigation()
    elif page in http_pages.PAGES:
        source[0] += http_pages.PAGES[page]()


def keep_words(_app: Sphinx, document: nodes.document) -> None:
    """A link to a folder of the repository is its name: the site has no page for it."""
    page = Path(document["source"])
    for link in list(document.findall(pending_xref)):
        if link.get("reftype") == "myst" and (page.parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def list_settings(_app: Sphinx, _what: str, _name: str, item: object, _options: object, lines: list[str]) -> None:
    """The arguments of a section of the configuration are its fields: said once, where they are declared."""
    if isinstance(item, type) and issubclass(item, Section):
        example = lines.index("Example::")
        said = [f"    {name}: {_field(field)}" for name, field in item.model_fields.items()]
        lines[example:example] = ["Args:", *said, ""]


def _field(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = json.dumps(default, default=str)
    return " ".join(f"{field.description or ''} Default: `{shown}`.".split())


def short_signature(
    _app: Sphinx, _what: str, _name: str, item: object, _options: object, _signature: str, _returns: str
) -> tuple[str, str] | None:  # fmt: skip
    """What has its arguments listed below is not said twice."""
    is_section = isinstance(item, type) and issubclass(item, Section)
    return ("(**settings)", "") if is_section else None


def add_index(app: Sphinx, error: Exception | None) -> None:
    """The first page is README.html; servers want index.html."""
    if error is None:
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", complete)
    app.connect("doctree-read", keep_words)
    app.connect("autodoc-process-docstring", list_settings, priority=100)  # before Napoleon
    app.connect("autodoc-process-signature", short_signature)
    app.connect("build-finished", add_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
