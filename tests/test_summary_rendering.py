"""The two forms of a summary: the verdict first, nothing loaded, and text from the data never markup."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from tasks import reports as r
from tasks.summary import as_html, as_markdown, summarize
from tests.test_summary import ATTACK, FIRST, run_reports


class _Page(HTMLParser):
    """Collect the tags, what they would load, and the text of a page; refuse tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = [str(value) for key, value in attrs if key in ("src", "href", "action", "srcset")]
        self.loads += [value for value in named if not value.startswith("data:image/png;")]
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.mark.parametrize("kind", ["pass", "fail", "inconclusive", "gate"])
def test_page_is_whole_and_loads_nothing(kind: str) -> None:
    html = as_html(summarize(run_reports(kind), "sentiment"))
    page = _Page(html)
    assert not page.open
    assert not page.loads
    assert "script" not in page.tags
    assert "@import" not in html
    assert "url(" not in html
    assert "nan" not in re.findall(r'="([^"]*)"', html)


@pytest.mark.parametrize(
    ("kind", "badge"),
    [
        ("pass", "May ship"),
        ("fail", "Must not ship"),
        ("inconclusive", "Not settled"),
        ("gate", "Stopped at the data gate"),
    ],
)
def test_verdict_comes_first_in_both_forms(kind: str, badge: str) -> None:
    summary = summarize(run_reports(kind), "sentiment")
    assert badge in as_markdown(summary).splitlines()[0]
    words = " ".join(" ".join(_Page(as_html(summary)).words).split())
    assert badge in words[:120]


def test_page_shows_gain_loss_choice_training_data_and_lineage() -> None:
    words = " ".join(_Page(as_html(summarize(run_reports(), "sentiment"))).words)
    for expected in (
        "78.9 %", "88.6 %", "+9.7 points", "editorial (other domain)", "Champion",
        "constitution", "−0.016", "−0.030", "shown only", "α = 1", "Method lp-ft", "22.7 million",
        "near duplicate share", "warning", "723 rows were left out", FIRST.source, "d" * 64,
    ):  # fmt: skip
        assert expected in words, expected
    assert "What the tuned model lost most" not in words, "flips are shown on refusal only"
    assert words.count("α") > 3


def test_text_from_data_is_never_markup() -> None:
    summary = summarize(run_reports("fail"), "sentiment <b>", notes=[ATTACK])
    html = as_html(summary)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in html.split("<div")[0]
    markdown = as_markdown(summary)
    assert not re.search(r"(?<!\\)<", markdown)
    row = next(line for line in markdown.splitlines() if "a17" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 6, "a bar in the data must not make a new column"


def test_what_carries_loss_is_marked_and_stays_text() -> None:
    reports = run_reports()
    view = r.Measure(
        name="unsupervised_share",
        value=0.0,
        meaning="",
        remedy="",
        worst=["7: user <b>hi</b> ⟦assistant yes⟧✂"],
    )
    made = summarize(
        dataclasses.replace(reports, check=reports.check.model_copy(update={"measures": [view]})), "sentiment"
    )
    assert "user &lt;b&gt;hi&lt;/b&gt; <mark>assistant yes</mark>✂" in as_html(made)
    assert "⟦assistant yes⟧✂" in as_markdown(made)
    assert "What the model reads" not in as_html(summarize(reports, "sentiment"))


def test_the_same_reports_give_the_same_bytes() -> None:
    assert as_html(summarize(run_reports(), "x")) == as_html(summarize(run_reports(), "x"))


def test_markdown_tables_have_equal_columns() -> None:
    checked = 0
    for block in re.findall(r"(?:^\|.*\n)+", as_markdown(summarize(run_reports("fail"), "x")), re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block
        checked += 1
    assert checked == 5
