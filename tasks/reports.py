"""The reports that stages hand to each other and to people: typed JSON, written whole or not at all.

No report holds a time, a duration or a machine's name, so the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import StageError
from tasks.files import write_text

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Level = Literal["pass", "warn", "refuse"]


class Part(BaseModel):
    """A part of a report."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Report(Part):
    """A report file. `schema_version` rises when a reader of the old form would misread the new one."""

    schema_version: int = 1


class FileRecord(Part):
    """One file, by content."""

    path: str
    """Relative to the folder it belongs to, with forward slashes."""
    sha256: str
    size: int
    """Bytes."""


class FirstBase(Part):
    """Where a lineage began: forgetting is measured from here."""

    source: str
    fingerprint: str


class Base(Report):
    """`base.json`: which pretrained model, resolved to content."""

    source: str
    """As the recipe names it."""
    resolved: str
    """The immutable form: revision, version, or content hash filled in."""
    fingerprint: str
    """sha256 over the sorted (path, sha256) of its files; the folder's name in the store."""
    files: list[FileRecord]
    architecture: str
    """`model_type` of its configuration."""
    first_base: FirstBase


class SplitSchema(Report):
    """`splits/schema.json`: what the split tables hold. Columns: id, text, group, and what the task adds."""

    task: str
    labels: list[str]
    multi_label: bool = False
    """Whether `label` holds lists of indices."""
    rows: dict[str, int]
    """Rows by split: train, validation, test, and each target by name."""
    dropped: dict[str, dict[str, int]]
    """Rows left out, by table and reason."""
    fingerprint: str
    """sha256 over the split tables: what the passport clears."""
    source: dict[str, str]
    """Raw files by name → sha256."""


class BenchmarkInfo(Report):
    """`<half>/<name>/benchmark.json`, beside `examples.parquet` and `corpus.parquet` or `fit.parquet`."""

    name: str
    kind: str
    """As in the recipe."""
    metric: str
    examples: int
    fingerprint: str
    """Over the content of its tables, whatever wrote them; a slice is no part of it."""
    groups: int = 0
    """Independent units among them."""
    settings: dict[str, str | int | float | bool | None] = {}
    """What measuring it depends on beside its tables."""
    labels: list[str] = []
    """Names of the labels of its examples, in the order of their indices."""


class Expectation(Part):
    """One expectation and how it went."""

    type: str
    arguments: dict[str, object]
    success: bool
    observed: str
    """What was seen, in words."""
    failed_ids: list[str]
    """Row ids of what failed: the first 20."""
    failed_values: list[str] = []
    """What those rows have there, shortened, in the same order."""
    failed_count: int
    reads: Literal["batches", "columns", "shape"] = "batches"
    """How it was measured. batches: row by row, the counts of the batches added up. columns: it hangs on many rows at
    once, so the columns it names were read whole, which takes memory. shape: names and types of columns only."""


class ValidateReport(Report):
    """`validate.json`."""

    splits: str = ""
    """`SplitSchema.fingerprint` of what was read."""
    rows: int
    expectations: list[Expectation]
    failed_expectations: int


class Measure(Part):
    """One figure about the data."""

    name: str
    value: float | None
    """null: inconclusive; `meaning` says why, and a bound on it never passes."""
    interval: tuple[float, float] | None = None
    """95 % interval, where the value is an estimate."""
    confidence: float = 0.95
    """That of the interval, where it is another."""
    backed_by: int | None = None
    """Of an estimate that labels must back: how many labelled rows do. 0: none do, and it can only warn."""
    meaning: str
    """What the figure says, in a sentence."""
    remedy: str
    """What to do when it is bad."""
    worst: list[str] = []
    """The worst examples: row ids and an extract."""


class CheckReport(Report):
    """`check.json`."""

    splits: str = ""
    """`SplitSchema.fingerprint` of what was read."""
    rows: int
    sampled_rows: dict[str, int]
    """Rows embedded, by table."""
    measures: list[Measure]


class GateItem(Part):
    """One measure held against its bound."""

    name: str
    value: float | None
    """null: inconclusive."""
    level: Level
    reason: str
    remedy: str


class GateReport(Report):
    """`gate.json`: written whether the answer is yes or no."""

    level: Level
    items: list[GateItem]


class Passport(Report):
    """`passport.json`: what cleared which splits; nothing in it moves with a bound."""

    splits: str
    """`SplitSchema.fingerprint`."""
    cleared_by: list[str]
    """Names of the measures that were judged."""


class FinetuneReport(Report):
    """`finetune.json`."""

    method: str
    steps: int
    epochs: int
    trainable_parameters: int
    parameters: int
    truncated_rows: int
    metric: str = "accuracy"
    """Of the two scores."""
    start: str = "the frozen base with a linear probe"
    """Where tuning starts, and what α = 0 means."""
    start_score: float
    """Of that, on validation."""
    best_epoch: int
    validation_loss: float
    validation_score: float
    train_loss: float


class SuiteOutcome(Part):
    """One suite measured on base and candidate, over the same examples."""

    name: str
    metric: str
    examples: int
    base: float
    candidate: float
    loss: float
    """base - candidate: positive is forgotten."""
    standard_error: float
    """Of the paired loss, over groups."""
    chance: float = 0.0
    """What guessing scores on these examples."""
    p_guessing: float = 1.0
    """Of «the base does no better than guessing»: large where nothing is there to be lost, or it was not asked."""
    independent: float = 0.0
    """How many independent examples these are worth: fewer where groups have several; 0: it was not asked."""


class AlphaOutcome(Part):
    """One interpolation: gain on validation, losses on the selection halves."""

    path: str = "wise-ft"
    """The way between base and tuned model."""
    alpha: float
    validation_score: float
    """The task's metric."""
    gain: float
    """Over α = 0."""
    log_likelihood_gain: float | None = None
    """How much likelier the labels of validation are than at α = 0, in nats a row, each model being as sure as fits it
    best. Of mixtures that gain it orders which is taken. null: the task has no labels, and `gain` orders them."""
    suites: list[SuiteOutcome]
    """Empty where only validation was looked at."""
    within_budget: bool | None
    """null where only validation was looked at: the chosen one is before it in the order, so no benchmark was asked."""
    blocked_by: list[str]
    """Suites whose loss leaves no room."""


class Flip(Part):
    """A selection-half example that the base got right and the tuned model does worse."""

    suite: str
    id: str
    extract: str
    picture: Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/=]+$")] | None = None
    """Of an image: a small copy, as a `data:` address."""
    base: float
    candidate: float


class FlipSlice(Part):
    """What the tuned model lost and won on one slice of a benchmark's selection half."""

    suite: str
    slice: str
    """By what, and which: `label negative`, `length short`, `subject law`."""
    examples: int
    lost: int
    """Examples on which the tuned model does worse than the base."""
    won: int
    """Examples on which it does better."""
    loss: float
    """Mean of base - tuned over the slice."""


class LayerDrift(Part):
    """How far one depth of a model is from the base's."""

    depth: int
    """0 is what comes before the first block."""
    weights: float
    """‖model - base‖ / ‖base‖ of its parameters."""
    task: float | None
    """Linear CKA with the base on inputs of the task: 1 is alike; null where it has no block of its own."""
    original: float | None
    """The same on inputs of the original benchmarks."""


class Drift(Part):
    """How far a model is from where its tuning started: it explains, and never gates."""

    model: Literal["tuned", "chosen"]
    task_inputs: int
    """Validation rows read."""
    original_inputs: int
    """Examples of the selection halves read."""
    task_kl: float | None
    """KL(base ‖ model) of the answers to the task's inputs, in nats; null where answers are no distribution."""
    original_kl: float | None
    """The same on inputs of the original benchmarks."""
    layers: list[LayerDrift]


def tuned_outcome(outcomes: Sequence[AlphaOutcome]) -> AlphaOutcome:
    """Return that of the tuned model itself, which every search measures."""
    return next(outcome for outcome in outcomes if outcome.alpha == 1)


class MergeReport(Report):
    """`merge.json`."""

    metric: str = "accuracy"
    """Of the validation scores."""
    alpha: float
    """The chosen weight: 0 is the base, 1 the tuned model."""
    path: str = "wise-ft"
    """On which way between them."""
    rescued: bool
    """α = 1 was over the budget and a smaller α is not."""
    outcomes: list[AlphaOutcome]
    flips: list[Flip]
    """What the tuned model (α = 1) lost most, from selection halves only: at most ten, of gating suites first."""
    slices: list[FlipSlice] = []
    """Where it lost and won, by slice of the selection halves."""
    drift: list[Drift] = []
    """How far the tuned model is from the base, and the chosen one where it is a mixture."""
    model: str
    """Fingerprint of the chosen model."""

    @property
    def kept_base(self) -> bool:
        """Whether nothing of the tuning was kept."""
        return self.alpha == 0 and self.path == "wise-ft"

    @property
    def tuned(self) -> AlphaOutcome:
        """What the tuned model itself gained and lost."""
        return tuned_outcome(self.outcomes)


Asked = dict[str, str | int | float | bool | None]
"""How a benchmark is asked: its kind, its metric and its settings, by name."""


class Ledger(Part):
    """What releases of one name are measured against, since its first one or since `register.rebase`."""

    version: int
    """The first release of this ledger."""
    first_base: FirstBase
    benchmarks: dict[str, str]
    """Report halves that gated it: name → fingerprint; empty where the release does not say."""
    asked: dict[str, Asked] = {}
    """How they were asked; empty where the release does not say."""
    margins: dict[str, float] = {}
    """What each was allowed to lose; empty where the release does not say."""
    rebase: str | None
    """The reason that it was begun with; null for the first."""
    reasons: list[str] = []
    """All reasons with which ledgers of this name were begun: each serves once."""


class Pin(Report):
    """`pin.json`: what this candidate is compared with, resolved once."""

    registry_name: str
    champion: int | None
    """Version the alias pointed at; null when there is none."""
    champion_model: str | None
    """Fingerprint of its model."""
    candidate_model: str = ""
    """Fingerprint of the model whose attempts these are; empty in releases that were made before it was noted."""
    first_base: FirstBase
    ledger: Ledger | None = None
    """null before the first release."""
    benchmarks: dict[str, str] = {}
    """Report halves of now: name → fingerprint."""
    asked: dict[str, Asked] = {}
    """How each of them is asked: kind, metric, settings, and how much of a text is read in which arithmetic."""
    attempts: dict[str, int] = {}
    """Which attempt on each report half this candidate is: 1 is the first."""


class TargetOutcome(Part):
    """The task itself on one test set."""

    name: str
    """`test`, or a target's name."""
    metric: str = "accuracy"
    examples: int
    base: float
    """Of where tuning started."""
    candidate: float
    champion: float | None
    gain: float
    gain_interval: tuple[float, float]
    """Two-sided interval at the rule's confidence."""
    macro_f1: float | None = None
    """Of the candidate: the unweighted mean of the classes' F1; null where the task has no labels."""
    macro_f1_gain: float | None = None
    """Over where tuning started."""
    macro_f1_gain_interval: tuple[float, float] | None = None
    """Two-sided, by paired bootstrap over groups."""
    micro_f1: float | None = None
    """Of the candidate, where a row has any number of labels: the F1 of all decisions together."""
    micro_f1_gain: float | None = None
    """Over where tuning started."""
    micro_f1_gain_interval: tuple[float, float] | None = None
    """Two-sided, by paired bootstrap over groups."""


class EvaluateReport(Report):
    """`evaluate.json`: measured on the report halves and the test sets."""

    base_model: str
    candidate_model: str
    champion: int | None
    start: str = "the frozen base with a linear probe"
    """What `base` stands for in the targets: where tuning started."""
    targets: list[TargetOutcome]
    suites: list[SuiteOutcome]


class SuiteVerdict(Part):
    """The rule, applied to one suite."""

    name: str
    metric: str
    margin: float | None
    """null: informative."""
    base: float
    candidate: float
    loss: float
    lower: float
    """One-sided lower bound of the loss."""
    upper: float
    """One-sided upper bound of the loss: below the margin is a PASS."""
    p_value: float
    """Of «the loss is at least the margin»."""
    examples: int
    examples_needed: int | None
    """At which a model that lost nothing would pass with the stated power; null: cannot be settled."""
    verdict: Verdict
    test: str
    """Which test: `score` (binary outcomes), `t` (skewness-corrected), both (binary, in groups), or `z` (from a standard
    error alone)."""
    attempt: int = 1
    """Of the candidates that were measured on this report half."""
    blind: bool = False
    """Nothing could be seen here whatever the number of examples: the base knows nothing of it, or nothing varies."""
    alpha_spent: float | None = None
    """Bound of the chance that one of so many candidates which lost the whole margin would have passed."""
    reason: str


class DecideReport(Report):
    """`decision.json`."""

    verdict: Verdict
    reasons: list[str]
    """Every one, worst first."""
    advice: list[str]
    """Recipe changes most likely to pass; empty on PASS."""
    confidence: float
    target_verdict: Verdict
    target_reason: str
    ledger_verdict: Verdict = "PASS"
    """Whether base and benchmarks are those that the releases of this name began with, or a reason is given."""
    ledger_reason: str = ""
    rebase: str | None = None
    """The reason for which this release begins a new ledger; null where it goes on with the one there is."""
    widened: str = ""
    """Which margins are wider than the ledger began with, in a sentence; empty where none is."""
    attempts: str = ""
    """How often these report halves have been used and what that costs, in a sentence; empty at the first attempt."""
    champion: int | None
    champion_verdict: Verdict | None = None
    """Whether it is no worse than the champion on the test split; null when there is none."""
    suites: list[SuiteVerdict]
    tuned_suites: list[SuiteVerdict] = []
    """Where nothing of the tuning was kept: the tuned model on the *selection* halves, by its standard error."""
    model: str
    """Fingerprint of the model decided on."""


AnyReport = TypeVar("AnyReport", bound=Report)


def write_report(path: Path, report: Report) -> None:
    """Write `report` as JSON to `path`: keys in declared order, one trailing newline, whole or not at all."""
    write_text(path, json.dumps(report.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")


def read_report(path: Path, kind: type[AnyReport]) -> AnyReport:
    """Read a report.

    Raises:
        StageError: it is missing, or not of this form.
    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageError(f"{path} is missing: run the stage that writes it (`dvc repro`).") from None
    except ValidationError as error:
        raise StageError(f"{path} is no {kind.__name__} of this version: {error}") from None
