"""The summary of a run or a release: what it gained, what it forgot, whether it may ship, and why.

A pure function of the report files: `read_reports` → `summarize` → `as_markdown` or `as_html`. The page is
one file without scripts, fonts or links to load, so that it can be mailed, printed and kept.
"""

from __future__ import annotations

from tasks.summary.building import summarize
from tasks.summary.content import Summary
from tasks.summary.reading import KINDS, Reports, read_history, read_reports
from tasks.summary.rendering import as_html, as_markdown

__all__ = [
    "KINDS",
    "Reports",
    "Summary",
    "as_html",
    "as_markdown",
    "read_history",
    "read_reports",
    "summarize",
]
