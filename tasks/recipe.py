"""A recipe: one YAML file that says everything about one fine-tune.

Each stage is handed its own sections and nothing else (see `tasks/stages.py`). The string beneath a field
is its documentation everywhere: here, in `retain init`, and in the form of the Prefect UI.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import ConfigError, did_you_mean
from tasks.rates import TOO_HIGH, USUAL_RATES

NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")

SPLITS = ("train", "validation", "test")
MIN_ROWS_A_CLASS = 2
"""Rows of each label that a split has at least: `prepare` refuses it otherwise."""
REPLAY = "replay"
UNLABELLED = -1
"""The label in a split table of a target's row that has none."""
ORIGINAL = "original"
"""What `check` calls the examples of the original benchmarks."""
UNSHARDED = ("l2_sp", "ewc", "distill", "unfreeze_every", "lora")
"""Fields of `finetune` that want whole weights on each device."""
CONTRASTIVE = "sentence-embedding"
"""The task whose losses look across the rows of a batch."""
LABELLED = ("text-classification", "image-classification")
"""Tasks whose rows always have labels; those of a sentence embedding may."""


def _within_raw(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or path == PurePosixPath():
        raise ValueError(
            "a file below data/raw/<recipe>/, which DVC follows; bring others there with data.source"
        )
    return file


IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RawFile = Annotated[str, AfterValidator(_within_raw)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN.pattern)]


class Section(BaseModel):
    """A part of a recipe: closed (a typo is an error) and frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, strict=False
    )


# --- prepare: task, base, data, benchmarks ------------------------------------------------------------


class Table(Section):
    """How to read one raw file as rows: which columns hold what the task needs, the label and the group."""

    file: RawFile
    """File under `data/raw/<recipe>/`."""
    format: Literal["csv", "tsv", "jsonl", "parquet", "arrow", "image-folder"] = "csv"
    """File format; all text is UTF-8. `image-folder`: `file` is a folder that has a folder of images for each label."""
    header: list[str] | None = None
    """Column names, for a CSV or TSV file without a header line."""
    quoting: bool = True
    """Whether a quotation mark quotes (CSV and TSV); switch off for raw tab-separated text."""
    text: str = "text"
    """Column that holds the text (of a pair: its first text)."""
    label: str = "label"
    """Column that holds the label, where the task has labels; with `data.multi_label` a list of them."""
    label_separator: str | None = Field(default=None, min_length=1)
    """With `data.multi_label`, where rows hold no lists (CSV and TSV): what stands between the labels of a row."""
    may_lack_labels: bool = False
    """Of a target or of `data.replay`: rows without a label are kept, and the column may be absent. `check` estimates a
    target's accuracy, from the labelled rows too where there are some, and `evaluate` scores those only; replayed rows
    without a label are distilled."""
    messages: str | None = None
    """Causal LM: column that holds a conversation, a list of {role, content}; without it rows are plain text."""
    prompt: str | None = None
    """Causal LM: column that holds what the user says, for a conversation of two turns (with `completion`)."""
    completion: str | None = None
    """Causal LM: column that holds the assistant's answer, which carries loss."""
    positive: str | None = None
    """Sentence embedding: column of the text that should be near."""
    negative: str | None = None
    """Sentence embedding: column of the text that should be far."""
    score: str | None = None
    """Sentence embedding: column of how alike the pair is, a number."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """Least and greatest score there can be; scores are scaled to 0…1."""
    image: str | None = None
    """Image classification: column that names the image file."""
    image_folder: str = "."
    """Folder under `data/raw/<recipe>/` that image names are relative to."""
    where: dict[str, str] = Field(default_factory=dict)
    """Rows whose columns have these values are kept, the others are dropped, and counted."""
    max_rows: Annotated[int, Field(ge=30)] | None = None
    """Take this many rows, those whose groups hash first; all of them when absent."""
    id: str | None = None
    """Column that names a row; row numbers are used when absent."""
    group: str | None = None
    """Column of what must not be split: review, patient, contract, customer."""
    group_pattern: str | None = None
    """Regular expression whose first group, applied to the group column, is the group."""
    sign_of: str | None = None
    """Numeric column whose sign is the label (`negative` or `positive`), instead of a label column."""
    drop_below: float = 0.0
    """With `sign_of`: rows whose absolute value is below this are dropped, and counted."""

    @model_validator(mode="after")
    def _columns_fit(self) -> Table:
        problems = []
        if (self.prompt is None) != (self.completion is None):
            problems.append("`prompt` and `completion` come together")
        if self.messages and self.prompt:
            problems.append("a conversation is in `messages`, or in `prompt` and `completion`")
        if self.format == "image-folder" and (self.image, self.label, self.image_folder) != (
            "image",
            "label",
            ".",
        ):
            problems.append(
                "an image-folder has the columns `image` (its path there) and `label` (its folder): set "
                "`image: image`, and neither `label` nor `image_folder`"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Data(Section):
    """The labelled set to learn from."""

    source: str | dict[str, str]
    """Where the raw files come from: one source for the folder, or one for each file name."""
    train: Table
    """The rows that are split into train, validation and test."""
    labels: list[str] = Field(default_factory=list)
    """The declared label set, in order; any other label is an error. Empty where rows have no labels."""
    multi_label: bool = False
    """Text classification: a row has any number of the labels, none of them too."""
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the groups that selects (checkpoint, α)."""
    test_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of the groups that reports."""
    test: Table | None = None
    """A test set of its own, when there is one; `test_share` is then unused."""
    seed: int
    """Seeds the hash that assigns groups to splits."""
    targets: dict[Name, Table] = Field(default_factory=dict)
    """Samples of where the model will be used: for the mismatch check, and as out-of-domain test sets."""
    replay: Table | None = None
    """Rows of the original domain, for `finetune.replay_share`: with labels of the task, or without, for
    `finetune.distill` (`may_lack_labels`)."""

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> Data:
        problems = []
        if repeated := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            problems.append(f"labels must not repeat: {', '.join(repeated)}")
        if padded := [label for label in self.labels if not label.strip() or label != label.strip()]:
            problems.append(f"labels have no white space around them, and are not empty: {padded}")
        if len(self.labels) == 1:
            problems.append("labels has one label only: two are needed to tell apart, or none at all")
        if self.train.may_lack_labels or (self.test and self.test.may_lack_labels):
            problems.append(
                "rows to learn from and to test on have labels: may_lack_labels is for targets and replay"
            )
        if taken := sorted(set(self.targets) & {*SPLITS, REPLAY, ORIGINAL}):
            problems.append(f"a target cannot be named like a split: {', '.join(taken)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class RetrievalBenchmark(Section):
    """Zero-shot retrieval: each query must find its document among all; mean reciprocal rank."""

    kind: Literal["retrieval"]
    """The kind of benchmark."""
    file: RawFile
    """File under `data/raw/<recipe>/`, or a glob of several."""
    format: Literal["json", "jsonl", "conversations"]
    """`json`: a list of objects; `conversations`: chatterbot-corpus YAML, first line → second line."""
    query: str = "query"
    """Field that holds the query."""
    document: str = "document"
    """Field that holds the document."""


class FeatureBenchmark(Section):
    """Accuracy of a probe on frozen features, on a set the model is not tuned on."""

    kind: Literal["probe", "knn"]
    """`probe`: logistic regression; `knn`: nearest neighbours by cosine."""
    table: Table
    """The labelled rows; a third fits, a third selects, a third reports."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """Their label set; that of `data` when absent."""
    neighbours: int = Field(default=15, gt=0)
    """With `knn`: how many neighbours vote."""


class SimilarityBenchmark(Section):
    """Sentence similarity: how well the cosine of two sentences ranks as people do (Spearman)."""

    kind: Literal["similarity"]
    """The kind of benchmark."""
    table: Table
    """Rows with `text`, `positive` and `score`."""


class HeadBenchmark(Section):
    """Accuracy of the base's original head, asked what the base was trained to tell: images, or texts."""

    kind: Literal["head"]
    """The kind of benchmark."""
    table: Table
    """Labelled rows."""
    labels: list[str] = Field(min_length=2)
    """The original label set, in the order of the head's outputs."""


class ChoiceBenchmark(Section):
    """Multiple choice by likelihood, as lm-evaluation-harness scores ARC, HellaSwag or PIQA."""

    kind: Literal["choices"]
    """The kind of benchmark."""
    file: RawFile
    """JSON Lines under `data/raw/<recipe>/`."""
    query: str = "query"
    """Field that holds the question."""
    choices: str = "choices"
    """Field that holds the list of choices."""
    gold: str = "gold"
    """Field that holds the index of the right choice."""
    prompt: str = "{query}\nAnswer:"
    """What comes before a choice; `{query}` is the question."""
    normalise: bool = False
    """Divide each choice's log-likelihood by its length in bytes (`acc_norm`)."""
    slice: str | None = None
    """Field that tells questions apart (a subject): flips are counted by it."""
    max_examples: Annotated[int, Field(ge=10)] | None = None
    """Take this many, those whose ids hash first; all of them when absent."""


class LastWordBenchmark(Section):
    """Whether the most likely continuation is the last word, as LAMBADA is scored."""

    kind: Literal["last-word"]
    """The kind of benchmark."""
    file: RawFile
    """JSON Lines under `data/raw/<recipe>/`."""
    context: str = "context"
    """Field that holds the passage."""
    continuation: str = "continuation"
    """Field that holds its last word."""
    max_examples: Annotated[int, Field(ge=10)] | None = None
    """Take this many, those whose ids hash first; all of them when absent."""


class PerplexityBenchmark(Section):
    """Mean log-likelihood a token of reference text, in nats, over blocks; its loss is a rise of log perplexity."""

    kind: Literal["perplexity", "masked-lm"]
    """`perplexity`: each token after those before it; `masked-lm`: each token behind a mask, by the original head."""
    file: RawFile
    """Plain text under `data/raw/<recipe>/`, or JSON with `field`."""
    field: str | None = None
    """Field that holds the text, where the file is a JSON list of objects or JSON Lines. Each text is a document: no
    block crosses two, and the blocks of one stay in one half."""
    block_words: int = Field(default=200, ge=16)
    """Words that make a block, each read by itself; blocks are the examples, and a document shorter than that is one."""
    max_blocks: Annotated[int, Field(ge=10)] | None = None
    """Take this many, spread evenly over the text; all of them when absent."""


class HarnessBenchmark(Section):
    """A task of lm-evaluation-harness: by its name there, or a YAML file of its form."""

    kind: Literal["harness"]
    """The kind of benchmark."""
    harness_task: str
    """The task's name; online it comes from a hub, offline from `file`."""
    file: RawFile | None = None
    """A task YAML under `data/raw/<recipe>/`, whose data files lie beside it."""
    metric: Literal["acc", "acc_norm"] = "acc"
    """`acc`, or with log-likelihoods divided by the choice's characters."""
    shots: int | None = Field(default=None, ge=0)
    """Examples in the context; as the task says when absent."""
    max_examples: Annotated[int, Field(ge=10)] | None = None
    """Take this many, those whose questions hash first; all of them when absent."""


Benchmark = Annotated[
    RetrievalBenchmark
    | FeatureBenchmark
    | SimilarityBenchmark
    | HeadBenchmark
    | ChoiceBenchmark
    | LastWordBenchmark
    | PerplexityBenchmark
    | HarnessBenchmark,
    Field(discriminator="kind"),
]


# --- validate, check, gate ---------------------------------------------------------------------------


class Expectation(Section):
    """One Great Expectations expectation, by its name there."""

    type: str
    """For example `expect_column_values_to_not_be_null`."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments."""


class Validate(Section):
    """What must be true of each row."""

    min_rows_per_class: int = Field(ge=1)
    """Fewest training rows a label may have."""
    max_characters: int = Field(gt=0)
    """Longest text, in characters."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest row, in tokens of the base's tokenizer, conversations by its chat template; left out, tokens are not
    counted unless an expectation asks for the column `tokens`."""
    min_image_side: int = Field(default=8, ge=1)
    """Fewest pixels a side of an image may have."""
    max_image_side: int = Field(default=10_000, ge=1)
    """Most pixels a side of an image may have."""
    expectations: list[Expectation] = Field(default_factory=list)
    """Further expectations, on the columns id, text, label, group, split and what the task adds: tokens; turns,
    empty_turns, …; same_texts; width, height, channels, bits, …"""


class Check(Section):
    """How to measure whether this data set can work."""

    seed: int
    """Seeds sampling and permutations."""
    near_duplicate_similarity: Fraction
    """Estimated Jaccard similarity of 5-character shingles from which two texts are near-duplicates."""
    semantic_similarity: Fraction = 0.95
    """Cosine of embeddings from which two rows mean the same."""
    permutations: int = Field(ge=99)
    """Permutations of the mismatch test."""
    max_rows: int = Field(gt=0)
    """Rows embedded at most, a table; a stratified sample beyond (stated in the report)."""
    max_length: int = Field(default=128, ge=8)
    """Tokens of a text that the base model reads for these measures."""


class Bound(Section):
    """Where a measure warns and where it refuses; exactly one direction."""

    warn_above: float | None = None
    """Warn when the measure is above this."""
    refuse_above: float | None = None
    """Refuse when the measure is above this."""
    warn_below: float | None = None
    """Warn when the measure is below this."""
    refuse_below: float | None = None
    """Refuse when the measure is below this."""
    inconclusive: Literal["warn", "refuse"] = "warn"
    """What to do when the measure could not be taken, for want of rows: it never passes."""

    @model_validator(mode="after")
    def _one_direction(self) -> Bound:
        above = self.warn_above is not None or self.refuse_above is not None
        below = self.warn_below is not None or self.refuse_below is not None
        if above == below:
            raise ValueError("give warn_above/refuse_above or warn_below/refuse_below")
        return self


class Gate(Section):
    """The bounds that the reports of `validate` and `check` must respect."""

    failed_expectations: Bound
    """Number of expectations that failed."""
    measures: dict[str, Bound]
    """Bounds by measure name as in `check.json`, for example `exact_duplicate_share`."""


# --- finetune ----------------------------------------------------------------------------------------


Method = Literal["full", "lp-ft", "probe", "norms", "biases", "lora"]


class Lora(Section):
    """Low-rank adapters (Hu et al. 2021), merged into the weights after training."""

    rank: int = Field(ge=1)
    """Rank of each adapter."""
    alpha: Positive
    """Scale: the update counts alpha / rank times (rsLoRA: alpha / √rank)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout before the adapter."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """`rslora`: rank-stabilised scale; `dora`: magnitude and direction apart."""
    targets: list[str] | None = None
    """Ends of the names of the layers that get one; every linear layer below the head when absent."""
    quantise: bool = False
    """QLoRA: the frozen weights in 4 bit; needs CUDA and bitsandbytes."""


class Finetune(Section):
    """How to go on training, gently."""

    method: Method
    """`full`: all layers (a new head starts fresh); `lp-ft`: linear probe, then all layers; `probe`: the head only;
    `norms`, `biases`: only those, and the head; `lora`: low-rank adapters, and the head."""
    learning_rate: Positive
    """Peak rate of the deepest layer."""
    force_learning_rate: bool = False
    """Accept a rate more than ten times above the usual one for this task and method."""
    epochs: int = Field(ge=1)
    """Passes over the training split."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many epochs without a lower validation loss; never when absent."""
    batch_size: int = Field(ge=1)
    """Rows that make one optimizer step, whatever the device."""
    warmup_share: Fraction
    """Share of the steps over which the rate rises linearly; afterwards it falls linearly to zero."""
    weight_decay: float = Field(ge=0)
    """AdamW's decoupled decay; not on biases and norms."""
    max_grad_norm: Positive
    """Gradients are clipped to this norm."""
    max_length: Annotated[int, Field(ge=8)] | None
    """Longest sequence in tokens; longer texts are truncated, and counted. `null` for images, which have none."""
    window_overlap: int = Field(default=0, ge=0)
    """Text classification: read longer texts in windows that share so many tokens, logits averaged; 0 truncates."""
    class_weights: Literal["none", "balanced"] = "none"
    """Classification: `balanced` makes every class count the same in the loss (with `data.multi_label`: the rows that
    have a label as much as those that have it not)."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """With `data.multi_label`: the probability from which a row is given a label."""
    loss: Literal["multiple-negatives", "supervised-contrastive", "triplet", "cosine"] | None = None
    """Sentence embedding: the contrastive loss."""
    temperature: Positive = 0.05
    """Sentence embedding: cosines are divided by it."""
    augment: list[Literal["flip", "crop"]] = Field(default_factory=list)
    """Images: `flip` mirrors half of them left to right, `crop` shifts them by up to an eighth."""
    freeze_layers: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """How many of the earliest layers stay as they are (embeddings count as layer 0), or which share of them."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's rate is this times the rate of the layer above."""
    unfreeze_every: int = Field(default=0, ge=0)
    """Gradual unfreezing: steps between letting one more layer train, from the top; 0 trains all at once."""
    lora: Lora | None = None
    """With `method: lora`."""
    l2_sp: float = Field(default=0.0, ge=0)
    """Strength of the pull back to the base's weights (L2-SP)."""
    ewc: float = Field(default=0.0, ge=0)
    """Strength of that pull weighed by what matters for `data.replay` (elastic weight consolidation)."""
    distill: float = Field(default=0.0, ge=0)
    """Weight of keeping the base's answers, or features, on the rows at hand and on replayed ones (LwF)."""
    replay_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch that is replayed from `data.replay`."""
    average_last: Fraction = 0.0
    """Share of the steps, the last ones, whose weights are averaged (SWA): their mean is what epochs that end among them
    are measured with, and what stays of them; 0 takes weights as they are."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the forward and backward pass; weights stay fp32."""
    recompute_activations: bool = False
    """Compute activations again in the backward pass: about a third more time for a fraction of the memory. Happens by
    itself, on one device, where a single row does not fit."""
    compile: bool = False
    """Compile the model's blocks on CUDA: worth its minute or two of compiling in trainings of an hour or more."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between scratch checkpoints."""
    devices: int = Field(default=1, ge=1)
    """Devices of this machine that train together: CUDA devices, or processors where there are none."""
    sharding: Literal["replicate", "shard"] = "replicate"
    """On several devices: `replicate` keeps the whole model on each (DDP), `shard` a piece of it (FSDP2)."""
    seed: int
    """Seeds the head, the order of the rows and dropout."""

    @property
    def length(self) -> int:
        """`max_length` of a task that reads texts, which the recipe has been checked to give."""
        if self.max_length is None:
            raise ConfigError("finetune.max_length is missing: a task that reads texts needs it.")
        return self.max_length

    @model_validator(mode="after")
    def _parts_fit(self) -> Finetune:
        problems = []
        if (self.method == "lora") != (self.lora is not None):
            problems.append("`method: lora` and the section `lora` come together")
        if self.max_length is not None and self.window_overlap >= self.max_length - 2:
            problems.append("window_overlap must be smaller than max_length less the special tokens")
        if problems:
            raise ValueError("; ".join(problems))
        return self


# --- merge, evaluate, decide, register ---------------------------------------------------------------


class Suite(Section):
    """How much of one original ability may be lost."""

    margin: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Largest acceptable loss, in the metric's own unit."""
    informative: bool = False
    """Shown, never gating."""

    @model_validator(mode="after")
    def _margin_or_informative(self) -> Suite:
        if (self.margin is None) != self.informative:
            raise ValueError("give a margin, or `informative: true`; not both and not neither")
        return self


def gating_margins(budget: Mapping[str, Suite]) -> dict[str, float]:
    """Return the margins of the suites that gate, by name, in the budget's order."""
    return {name: suite.margin for name, suite in budget.items() if suite.margin is not None}


class Merge(Section):
    """The rescue: which point between base and tuned."""

    alphas: list[Fraction] = Field(min_length=2)
    """Interpolation weights tried, 0 (base) and 1 (tuned) among them."""
    paths: list[Literal["wise-ft", "lines"]] = Field(default=["wise-ft"], min_length=1)
    """`wise-ft` mixes all weights alike; `lines` keeps more of the deep layers' tuning."""

    @model_validator(mode="after")
    def _ends_present(self) -> Merge:
        if 0 not in self.alphas or 1 not in self.alphas:
            raise ValueError("alphas must contain 0 (the base) and 1 (the tuned model)")
        if sorted(set(self.alphas)) != list(self.alphas):
            raise ValueError("alphas must rise and not repeat")
        return self


class Evaluate(Section):
    """How to measure."""

    precision: Literal["fp32", "bf16"]
    """Arithmetic of the forward pass; the same for base and candidate."""
    max_length: int = Field(default=128, ge=8)
    """Tokens of a benchmark's text that a model reads; the same for base and candidate."""
    max_target_rows: Annotated[int, Field(ge=30)] | None = None
    """Rows of each target that are scored, those whose groups hash first; all of them when absent."""
    metric: Literal["macro_f1"] | None = None
    """What the task's gain is counted in, by `merge` and by the release rule: `macro_f1`, in which every class counts the
    same however rare; the task's own metric when absent (accuracy, of lists of labels their F1)."""


class Decide(Section):
    """The release rule."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    """Of each one-sided test: 0.95 is α = 0.05."""
    power: Annotated[float, Field(gt=0.5, lt=1)]
    """With which a model that lost nothing must pass; used by `merge` and in advice."""
    champion_margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """By how much a release may fall behind the champion on the test split, in the task's metric, to be shown with
    confidence."""
    bootstrap_draws: int = Field(ge=1000)
    """Paired bootstrap draws, for metrics that are no mean of examples (macro-F1)."""
    seed: int
    """Seeds the bootstrap."""


class Register(Section):
    """Where a passing model goes."""

    name: Name
    """The release's name in the registry."""
    promote: bool = False
    """Move the alias `champion` to a release that passes."""
    rebase: Annotated[str, Field(min_length=10)] | None = None
    """Why releases of this name are from now on measured from another first base, or on other benchmarks, than before."""
    keep_first_base: bool = False
    """Keep the weights of the first base with the release, against the day that their source no longer has them; once,
    however many releases there are."""


class Tune(Section):
    """What `retain tune` searches: the best model that forgets at most what `budget` allows."""

    trials: int = Field(ge=1)
    """Trainings, pruned ones included."""
    seed: int
    """Seeds the sampler."""
    learning_rates: tuple[Positive, Positive] | None = None
    """Least and greatest rate, as multiples of what task and method usually want; a tenth to five times when absent."""
    methods: list[Method] = Field(default_factory=list)
    """Methods tried; those of the task that need no further setting when empty."""
    epochs: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Passes tried; those of `finetune` when empty."""
    freeze_layers: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.0])
    """Shares of the blocks that stay as they are."""
    l2_sp: list[Annotated[float, Field(ge=0)]] = Field(default=[0.0])
    """Strengths of the pull back to the base."""
    layer_decay: list[Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=list)
    """Layer-wise decays of the rate; that of `finetune` when empty."""
    replay_share: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.0])
    """Shares of replayed rows; above 0 they need `data.replay`."""
    distill: list[Annotated[float, Field(ge=0)]] = Field(default_factory=list)
    """Weights of keeping the base's answers; that of `finetune` when empty. Trials that replay rows which may lack labels
    draw from those above 0."""
    average_last: list[Fraction] = Field(default=[0.0])
    """Shares of the last steps whose weights are averaged."""
    lora_ranks: list[Annotated[int, Field(ge=1)]] = Field(default=[8])
    """Ranks tried with `method: lora`."""


class Recipe(Section):
    """One fine-tune, whole."""

    task: Literal["text-classification", "causal-lm", "sentence-embedding", "image-classification"]
    """What the model learns to do."""
    base: str
    """The pretrained model, as a source."""
    data: Data
    """The labelled set."""
    benchmarks: dict[Name, Benchmark] = Field(min_length=1)
    """What the base model could do before."""
    validate_: Validate = Field(alias="validate")
    """What must be true of each row."""
    check: Check
    """How to measure whether this data set can work."""
    gate: Gate
    """Bounds on those measures."""
    finetune: Finetune
    """How to train."""
    budget: dict[Name, Suite]
    """How much each benchmark may lose."""
    merge: Merge
    """Which interpolations to try."""
    evaluate: Evaluate
    """How to measure."""
    decide: Decide
    """When it may ship."""
    register_: Register = Field(alias="register")
    """Where it goes."""
    tune: Tune | None = None
    """What `retain tune` searches."""
    profiles: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Named sets of changes, `{field: value}`, for `retain run --profile`: a smoke test, another loss."""

    @model_validator(mode="after")
    def _every_benchmark_has_a_budget(self) -> Recipe:
        missing = sorted(set(self.benchmarks) - set(self.budget))
        unknown = sorted(set(self.budget) - set(self.benchmarks))
        problems = [f"no budget for benchmark(s) {', '.join(missing)}"] if missing else []
        problems += [f"budget for unknown benchmark(s) {', '.join(unknown)}"] if unknown else []
        if problems:
            raise ValueError("; ".join(problems))
        if all(suite.informative for suite in self.budget.values()):
            raise ValueError("every benchmark is informative: nothing would stop a model that forgot")
        return self

    @model_validator(mode="after")
    def _parts_fit_the_task(self) -> Recipe:
        problems = [*_source_problems(self), *_data_problems(self)]
        problems += [*_finetune_problems(self), *_benchmark_problems(self)]
        if problems := [*problems, *_budget_problems(self), *_tune_problems(self)]:
            raise ValueError("; ".join(problems))
        return self

    def sections(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named sections as they are called in the file; `a.b` is one field of a section."""
        by_alias = {(field.alias or name): name for name, field in type(self).model_fields.items()}
        found = {}
        for name in names:
            first, *rest = name.split(".")
            found[name] = functools.reduce(getattr, rest, getattr(self, by_alias[first]))
        return found


BENCHMARKS = {
    "text-classification": ("retrieval", "probe", "knn", "similarity", "head", "masked-lm"),
    "sentence-embedding": ("retrieval", "probe", "knn", "similarity", "head", "masked-lm"),
    "causal-lm": ("choices", "last-word", "perplexity", "harness", "retrieval", "probe", "knn", "similarity"),
    "image-classification": ("probe", "knn", "head"),
}


def _source_problems(recipe: Recipe) -> list[str]:
    """Refuse sources that are written wrongly: whether they can be reached is known when they are fetched."""
    from tasks.sources import parse_base, parse_source  # it knows recipes

    raw = recipe.data.source
    named = {"data.source": raw} if isinstance(raw, str) else {f"data.source.{k}": v for k, v in raw.items()}
    problems = []
    try:
        parse_base(recipe.base)
    except ConfigError as error:
        problems.append(error.message)
    for field, text in named.items():
        try:
            parse_source(text)
        except ConfigError as error:
            problems.append(f"{field}: {error.message}")
    return problems


def _label_problems(recipe: Recipe) -> list[str]:
    data, task, problems = recipe.data, recipe.task, []
    if task in LABELLED and not data.labels:
        problems.append(f"data.labels: a {task} recipe declares its labels")
    if task == "causal-lm" and data.labels:
        problems.append("data.labels: the rows of a causal-lm recipe have no labels")
    if recipe.evaluate.metric and not data.labels:
        problems.append(
            f"evaluate.metric: {recipe.evaluate.metric} is counted by class, and data.labels is empty"
        )
    if data.multi_label and task != "text-classification":
        problems.append("data.multi_label: only text-classification gives a row several labels")
    for table in (data.train, data.test, data.replay, *data.targets.values()):
        if table is not None and data.multi_label and table.sign_of:
            problems.append(
                f"{table.file}: sign_of makes one label, and data.multi_label says there are several"
            )
        if table is not None and table.may_lack_labels and data.multi_label:
            problems.append(
                f"{table.file}: may_lack_labels is for rows of one label, not for data.multi_label"
            )
        if table is not None and table.label_separator and not data.multi_label:
            problems.append(f"{table.file}: label_separator is read only where data.multi_label is true")
    return problems


def _data_problems(recipe: Recipe) -> list[str]:
    data, task, problems = recipe.data, recipe.task, _label_problems(recipe)
    tables = {"train": data.train, "test": data.test, "replay": data.replay, **data.targets}
    for name, table in tables.items():
        if table is None:
            continue
        if (task == "image-classification") != (table.image is not None):
            problems.append(f"data.{name}.image: given for image-classification, and only there")
        if task != "causal-lm" and (table.messages or table.prompt):
            problems.append(
                f"data.{name}.{'messages' if table.messages else 'prompt'}: only causal-lm reads conversations"
            )
        if task == "sentence-embedding" and not data.labels and table.positive is None:
            problems.append(
                f"data.{name}: a sentence-embedding recipe needs data.labels, or pairs (`positive`)"
            )
        if table.score is not None and table.score_range[0] >= table.score_range[1]:
            problems.append(f"data.{name}.score_range: the least score comes first")
    return problems


def _finetune_problems(recipe: Recipe) -> list[str]:
    section, task, problems = recipe.finetune, recipe.task, []
    if section.method not in USUAL_RATES[task]:
        problems.append(f"finetune.method: {task} knows {', '.join(USUAL_RATES[task])}")
    else:
        problems += _rate_problems(section, USUAL_RATES[task][section.method], task)
    if (task == "image-classification") != (section.max_length is None):
        problems.append("finetune.max_length: a number for a task that reads texts, null for images")
    if (task == "sentence-embedding") != (section.loss is not None):
        problems.append("finetune.loss: given for sentence-embedding, and only there")
    if section.window_overlap and task != "text-classification":
        problems.append("finetune.window_overlap: only text-classification reads windows")
    if section.augment and task != "image-classification":
        problems.append("finetune.augment: only images are augmented")
    if section.threshold != 0.5 and not recipe.data.multi_label:
        problems.append("finetune.threshold: only where data.multi_label is true")
    if section.class_weights != "none" and task not in LABELLED:
        problems.append("finetune.class_weights: only classification weighs classes")
    if (section.replay_share or section.ewc) and recipe.data.replay is None:
        problems.append(
            "finetune.replay_share and finetune.ewc need data.replay, rows of the original domain"
        )
    problems += _combination_problems(section, task)
    if recipe.data.replay and recipe.data.replay.may_lack_labels:
        problems += _unlabelled_replay_problems(recipe)
    return problems


def _combination_problems(section: Finetune, task: str) -> list[str]:
    problems = []
    if section.method == "lora":
        problems += [
            f"finetune.{name}: `method: lora` leaves the base's weights where they are, so that a pull back to them does "
            "nothing: set it to 0, or choose another method"
            for name in ("l2_sp", "ewc")
            if getattr(section, name)
        ]
    if section.ewc and task == CONTRASTIVE:
        problems.append(
            f"finetune.ewc: the loss of {task} looks across rows, and a row alone has none: set it to 0"
        )
    if section.method != "probe":
        problems += [f"finetune.devices: {one}" for one in devices_problems(section, task == CONTRASTIVE)]
    return problems


def devices_problems(section: Finetune, whole_batches: bool) -> list[str]:
    """Say what several devices cannot do together; with `whole_batches` a loss looks across the rows of a batch."""
    if section.devices == 1:
        return []
    problems = []
    if whole_batches:
        problems.append(
            "a contrastive loss compares all rows of a batch with each other, and on several devices it would see "
            "other pairs than on one: set devices: 1"
        )
    if section.sharding == "shard":
        problems += [_unsharded(name) for name in UNSHARDED if getattr(section, name)]
    return problems


def _unsharded(name: str) -> str:
    return f"{name} wants whole weights on each device: set sharding: replicate, or leave {name} out"


def _rate_problems(section: Finetune, usual: float, task: str) -> list[str]:
    if section.method == "probe" or section.force_learning_rate or section.learning_rate <= TOO_HIGH * usual:
        return []
    return [
        f"finetune.learning_rate is {section.learning_rate:g}: more than ten times the {usual:g} that `method: "
        f"{section.method}` wants for {task}, and the surest way to forget; lower it, or set "
        "force_learning_rate: true"
    ]


def _unlabelled_replay_problems(recipe: Recipe) -> list[str]:
    section, problems = recipe.finetune, []
    if not recipe.data.labels:
        problems.append(
            f"data.replay.may_lack_labels: {recipe.task} without data.labels has no labels to do without"
        )
    if section.ewc:
        problems.append(
            "finetune.ewc finds what matters by a loss: data.replay needs labels (may_lack_labels: false)"
        )
    if section.replay_share and not section.distill:
        problems.append("finetune.distill: replayed rows that may lack labels teach nothing without it")
    searched = recipe.tune
    if searched and any(searched.replay_share) and not any(searched.distill or [section.distill]):
        problems.append(
            "tune.distill: replayed rows that may lack labels teach nothing without it; give strengths above 0"
        )
    return problems


def _tune_problems(recipe: Recipe) -> list[str]:
    section, finetune, known = recipe.tune, recipe.finetune, USUAL_RATES[recipe.task]
    if section is None:
        return []
    problems = []
    if unknown := [method for method in section.methods if method not in known]:
        problems.append(f"tune.methods: {recipe.task} knows {', '.join(known)}, not {', '.join(unknown)}")
    if section.learning_rates and section.learning_rates[0] >= section.learning_rates[1]:
        problems.append("tune.learning_rates: the least multiple comes first, then the greatest")
    if section.learning_rates and section.learning_rates[1] > TOO_HIGH and not finetune.force_learning_rate:
        problems.append(
            f"tune.learning_rates: a run refuses more than {TOO_HIGH} times the usual rate, unless "
            "finetune.force_learning_rate is set"
        )
    if any(section.replay_share) and recipe.data.replay is None:
        problems.append("tune.replay_share needs data.replay, rows of the original domain")
    if "lora" in section.methods and finetune.ewc:  # of `l2_sp` each trial has its own
        problems.append("tune.methods: lora does not go with finetune.ewc: set it to 0")
    if finetune.devices > 1 and finetune.sharding == "shard":
        tried = {
            "l2_sp": any(section.l2_sp),
            "distill": any(section.distill),
            "lora": "lora" in section.methods,
        }
        problems += [f"tune: {_unsharded(name)}" for name, some in tried.items() if some]
    return problems


def _benchmark_problems(recipe: Recipe) -> list[str]:
    problems = []
    for name, benchmark in recipe.benchmarks.items():
        if benchmark.kind not in BENCHMARKS[recipe.task]:
            problems.append(
                f"benchmarks.{name}.kind: {recipe.task} takes {', '.join(BENCHMARKS[recipe.task])}"
            )
        of_data = [] if recipe.data.multi_label else recipe.data.labels
        if isinstance(benchmark, FeatureBenchmark) and not (benchmark.labels or of_data):
            problems.append(f"benchmarks.{name}.labels: there are none in data that could serve")
        if isinstance(benchmark, SimilarityBenchmark) and not (
            benchmark.table.positive and benchmark.table.score
        ):
            problems.append(f"benchmarks.{name}.table: a similarity benchmark names `positive` and `score`")
        if isinstance(benchmark, FeatureBenchmark | HeadBenchmark) and (
            (recipe.task == "image-classification") != (benchmark.table.image is not None)
        ):
            problems.append(f"benchmarks.{name}.table.image: given for image-classification, and only there")
    return problems


def _budget_problems(recipe: Recipe) -> list[str]:
    """Refuse a margin that its benchmark has too few examples to show, where its size is declared."""
    problems = []
    for name, suite in recipe.budget.items():
        benchmark = recipe.benchmarks.get(name)
        most = _most_examples(benchmark) if benchmark else None
        if suite.margin is None or benchmark is None or most is None:
            continue
        # scipy: only where there is a size
        from tasks.forgetting.sizes import METRICS, examples_asked, margin_carried, why_asked

        parts = 3 if isinstance(benchmark, FeatureBenchmark) else 2
        metric = benchmark.metric if isinstance(benchmark, HarnessBenchmark) else METRICS[benchmark.kind]
        asked, report = examples_asked(suite.margin, metric, recipe.decide), most // parts
        if report < asked:
            carried = margin_carried(report, metric, recipe.decide)
            widen = f"a margin of {carried:g} or more, " if carried else ""
            problems.append(
                f"budget.{name}.margin: {most} examples leave about {report} for the report, and that a margin of "
                f"{suite.margin:g} was kept {why_asked(asked, metric, recipe.decide)}: take about {asked * parts} "
                f"examples, {widen}or `informative: true`"
            )
    return problems


def _most_examples(benchmark: Benchmark) -> int | None:
    """Return how many examples a benchmark has at most, where its recipe says so."""
    if isinstance(benchmark, PerplexityBenchmark):
        return benchmark.max_blocks
    if isinstance(benchmark, ChoiceBenchmark | LastWordBenchmark | HarnessBenchmark):
        return benchmark.max_examples
    return None if isinstance(benchmark, RetrievalBenchmark) else benchmark.table.max_rows


def recipe_path(root: Path, name: str) -> Path:
    """Return where the recipe `name` lies below the repository `root`.

    Raises:
        ConfigError: it is no name, but a path, say.
    """
    check_recipe_name(name)
    return root / "recipes" / f"{name}.yaml"


def check_recipe_name(name: str) -> None:
    """Return when this can be the name of a recipe.

    Raises:
        ConfigError: it is no name, but a path, say.
    """
    if not NAME_PATTERN.match(name):
        stem = Path(name).stem
        meant = f" Did you mean {stem!r}?" if NAME_PATTERN.match(stem) else ""
        raise ConfigError(f"{name!r} is no recipe name: use lower-case letters, digits and hyphens.{meant}")


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a key that is written twice in a mapping, of which YAML takes the last without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                before = f"it is there since line {first[key.value].line + 1}"
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is written twice, {before}", problem_mark=key.start_mark
                )
            first[str(key.value)] = key.start_mark
        return node


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: the file is missing, is no YAML, or has errors: all of them are listed.
    """
    check_recipe_name(path.stem)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ConfigError(f"There is no recipe {path}. Recipes here: {known}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = str(error).replace("<unicode string>", path.name)
        raise ConfigError(f"{path} is not valid YAML (UTF-8): {said}") from None
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} is empty or no mapping: see docs/recipes.md for the sections a recipe has."
        )
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{path} has {error.error_count()} problem(s):", _problems(error)) from None


def _problems(error: ValidationError) -> list[str]:
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "recipe"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"there is no such field{_like(str(item['loc'][-1]))}"
        given = "" if item["type"] in ("missing", "value_error") else f" (given: {item['input']!r:.60})"
        problems.append(f"{place}: {message}{given}")
    return problems


def _like(name: str) -> str:
    """Return a question after the field whose name is nearest to one that no section knows."""
    fields = {
        field.alias or own for kind in Section.__subclasses__() for own, field in kind.model_fields.items()
    }
    return did_you_mean(name, fields)
