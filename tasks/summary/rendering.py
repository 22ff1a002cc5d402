"""A summary in its two forms: Markdown, and one HTML page."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from tasks.summary.content import Summary


def as_markdown(summary: Summary) -> str:
    """Render the summary as Markdown, for terminals, pull requests and Prefect's artifacts."""
    return re.sub(r"\n{3,}", "\n\n", _render("summary.md.j2", summary)).strip() + "\n"


def as_html(summary: Summary) -> str:
    """Render the summary as one self-contained HTML page."""
    return _render("summary.html.j2", summary)


def _render(template: str, summary: Summary) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _markdown_text
    environment.filters["marked"] = _marked
    return environment.get_template(template).render(summary=summary)


def _marked(text: str) -> str:
    """Return HTML in which what stands between ⟦ and ⟧ is marked."""
    from markupsafe import Markup

    return Markup(str(escape(text)).replace("⟦", "<mark>").replace("⟧", "</mark>"))


def _markdown_text(text: str) -> str:
    """Escape what Markdown or HTML would read as markup, and keep the text on one line."""
    return re.sub(r"([\\`*\[\]<>|#~]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
