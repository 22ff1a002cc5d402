"""What a summary holds: plain texts, table rows and drawings, in the order in which a page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "GATE", "UNFINISHED"]
BADGES: dict[Outcome, str] = {
    "PASS": "May ship",
    "FAIL": "Must not ship",
    "INCONCLUSIVE": "Not settled: must not ship",
    "GATE": "Stopped at the data gate",
    "UNFINISHED": "No verdict yet",
}
LEVELS: dict[Outcome, str] = {
    "PASS": "pass",
    "FAIL": "fail",
    "INCONCLUSIVE": "inconclusive",
    "GATE": "fail",
    "UNFINISHED": "info",
}


@dataclass(frozen=True)
class Row:
    """One line of a table: plain texts, a level for its colour and a drawing (SVG) for the page."""

    cells: tuple[str, ...]
    level: str = ""
    drawing: str = ""


@dataclass(frozen=True)
class Picture:
    """A drawing (SVG), what it shows and the names of its series, in order."""

    drawing: str
    caption: str
    legend: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a page or a Markdown text shows; every text is plain and not yet escaped."""

    title: str
    outcome: Outcome
    sentence: str
    notes: tuple[str, ...] = ()
    """What the reader must know first, for example that the figures are out of date."""
    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()
    """Key figures: label, value, detail."""
    gains: tuple[Row, ...] = ()
    gains_sentence: str = ""
    """What before and after are, in words."""
    champion: int | None = None
    suites: tuple[Row, ...] = ()
    suites_sentence: str = ""
    """What was measured, of which model and on what."""
    confidence: float | None = None
    choice: str = ""
    choice_pictures: tuple[Picture, ...] = ()
    tried: tuple[Row, ...] = ()
    """Mixtures of base and tuned model that were tried: on the selection halves, or on validation alone."""
    tried_sentence: str = ""
    """What orders them, in words."""
    training: str = ""
    training_pictures: tuple[Picture, ...] = ()
    data: tuple[Row, ...] = ()
    data_sentence: str = ""
    failures: tuple[str, ...] = ()
    """Expectations that failed, in words."""
    worst: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Measures that warned or refused, with their worst examples."""
    views: tuple[str, ...] = ()
    """Training rows as a language model reads them; what carries loss stands between ⟦ and ⟧."""
    flips: tuple[Row, ...] = ()
    drift: str = ""
    """How far the answers moved, in words."""
    drift_pictures: tuple[Picture, ...] = ()
    slices: tuple[Row, ...] = ()
    """Where the tuned model lost: the worst slices of the selection halves."""
    lineage: tuple[tuple[str, str], ...] = ()

    @property
    def badge(self) -> str:
        """Return the verdict in a few words."""
        return BADGES[self.outcome]

    @property
    def level(self) -> str:
        """Return the class that colours the verdict."""
        return LEVELS[self.outcome]
