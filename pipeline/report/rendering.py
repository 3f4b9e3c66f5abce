"""How pages are made: templates, and pictures within the page."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image


def render(template: str, context: dict[str, Any]) -> str:
    """Fill in a template; unknown names are errors, HTML is escaped.

    Args:
        template: its path within `pipeline`; it may import others by theirs.
        context: its names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = _literal
    return environment.get_template(template).render(context)


def style() -> Markup:
    """The CSS of all pages."""
    return Markup(render("report/report.css.j2", {}))


def inline(name: str, svg: str) -> Markup:
    """An SVG file as an element of the page; its ids get the prefix `name` and a dash."""
    body = re.sub(r" *<metadata>.*?</metadata>\n", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body))


def data_uri(image: NDArray[np.uint8], most: int, file_format: str = "PNG") -> str:
    """A picture as a URI that holds it.

    Args:
        image: uint8 [H, W, C], of one channel or three.
        most: pixels of the longer side; a larger picture is made smaller.
        file_format: PNG, or JPEG for large photos.
    """
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((most, most))
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, optimize=True, quality=85)  # PNG has no quality
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{file_format.lower()};base64,{content}"


def _source(template: str) -> str:
    return files("pipeline").joinpath(template).read_text(encoding="utf-8")


def _literal(text: str) -> str:
    """Escape `text` for GitHub's Markdown, for a line or a cell of a table.

    Only what Markdown would interpret is escaped: neither an underscore within a word nor
    brackets without a target.
    """
    escaped = re.sub(r"[\\`*<>|~$]|\](?=[\[(])|&(?=#?\w+;)", r"\\\g<0>", text)
    at_edges = r"(?<![^\W_])_|_(?![^\W_])"
    return re.sub(at_edges, r"\\_", escaped).replace("\n", " ")
