"""Sphinx builds the pages with ``make docs``; nothing is fetched, and any warning is an error."""

import importlib.metadata
import pathlib
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.ext import autosummary
from sphinx.transforms.post_transforms import SphinxPostTransform

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import jaxopt_nn

project = "jaxopt_nn"
author = "The jaxopt_nn authors"
copyright = author
release = importlib.metadata.version("jaxopt_nn")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = ["config.cache"]  # `setup` of this file has a class, which the cache of settings can't hold

html_theme = "furo"
html_title = f"jaxopt_nn {release}"
html_copy_source = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
pygments_style = "friendly"
pygments_dark_style = "native"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_linkify_fuzzy_links = False

default_role = "code"  # docstrings write code in single backticks, as Markdown does
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autosummary_generate = False
autosummary.WELL_KNOWN_ABBREVIATIONS += ("eq.", "eqs.", "sec.")  # a summary does not end there

# Types of other packages: their pages would have to be fetched.
nitpick_ignore_regex = [("py:.*", r"(?!jaxopt_nn).*"), ("py:.*", r"jaxopt_nn\.[a-z_]+\..*")]
autodoc_default_options = {"members": True}

#: Code that is surely a public name: `jn.prune(...)`, `Network`, `make_step`; not `metrics`, which may be any argument.
PUBLIC = re.compile(r"(?:(?:jn|jaxopt_nn)\.)(\w+)\b.*|([A-Z]\w+|[a-z]\w*_\w*)(?:\(.*\))?", re.DOTALL)


class LinkedNames(SphinxPostTransform):
    """Public names in running text lead to their entries in the reference."""

    default_priority = 5  # before references are resolved

    def run(self, **options: Any) -> None:
        for code in list(self.document.findall(nodes.literal)):
            match = PUBLIC.fullmatch(code.astext())
            name = match and (match[1] or match[2])
            if name not in jaxopt_nn.__all__ or isinstance(code.parent, nodes.reference | pending_xref):
                continue
            target = f"jaxopt_nn.{name}"
            reference = pending_xref(
                "", refdomain="py", reftype="obj", reftarget=target, refdoc=self.env.docname, refwarn=True
            )
            code.replace_self(reference)
            reference += code


def public(app: Sphinx, env: Any, node: pending_xref, content: Any) -> Any:
    """A type in a signature is named by its module (`jaxopt_nn.core.rule.Rule`): its entry is that of the public name."""
    name = node.get("reftarget", "").rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in jaxopt_nn.__all__ or "." not in node["reftarget"]:
        return None
    return env.domains["py"].resolve_xref(env, node["refdoc"], app.builder, "obj", f"jaxopt_nn.{name}", node, content)


def parsable(app: Sphinx, kind: str, name: str, value: Any, options: Any, signature: str | None, returns: Any) -> Any:
    """A default without a literal (`<factory>`, a function) would keep the types of the whole signature from being read."""
    return signature and re.sub(r"<(?:[^<>]|<[^<>]*>)*>", "...", signature), returns


def told_already(app: Sphinx, kind: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple stand in its docstring; by themselves they only say their position."""
    return True if (getattr(value, "__doc__", None) or "").startswith("Alias for field number") else None


def one_name_a_line(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """`lo, hi: the box` is an entry for each: as a field of an attribute the first name would be taken for a type."""
    entry = re.compile(r"^  (\w+(?:, \w+)+): (.*(?:\n    .*)*)", re.MULTILINE)
    each = lambda found: "\n".join(f"  {name}: {found[2]}" for name in found[1].split(", "))
    lines[:] = entry.sub(each, "\n".join(lines)).split("\n")


def setup(app: Sphinx) -> None:
    next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"
    app.connect("autodoc-process-signature", parsable)
    app.connect("autodoc-process-docstring", one_name_a_line, priority=400)  # before napoleon's
    app.add_post_transform(LinkedNames)
    app.connect("autodoc-skip-member", told_already)
    app.connect("missing-reference", public)
