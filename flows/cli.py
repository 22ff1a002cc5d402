"""The command line `retain`. Only Typer is imported here; a command imports what it needs when it is called.

Exit status: 0 released or nothing to do, 1 an error the user can act on, 2 usage, 3 refused, 75 preempted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows import release_commands
from flows.console import duration, find_root, parse_settings, say, say_json, say_markdown, say_table
from tasks.errors import ConfigError, PipelineError, StageError, did_you_mean
from tasks.exit_status import exit_status
from tasks.files import disk_full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.plan import Plan
    from flows.runs import FlowResult
    from tasks.summary import Summary
    from tasks.trials import Trial

app = typer.Typer(
    help="Fine-tune pretrained models on a schedule, and never ship one that forgot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a file in recipes/, without .yaml.")
]
Profiles = Annotated[
    list[str] | None,
    typer.Option(
        "--profile", metavar="NAME", help="Apply a profile of the recipe, for this run only; repeatable."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Change a recipe field, for this run only; repeatable."
    ),
]


def main() -> None:
    """Run the command line; expected errors print without a traceback and exit with their own status."""
    sys.exit(exit_status("retain", lambda: app(prog_name="retain")))


def _enter_root() -> Path:
    """Change into the repository: DVC mistakes its own stages for others when it is called from below."""
    root = find_root()
    os.chdir(root)
    return root


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"retain {version('retain')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune pretrained models on a schedule, and never ship one that forgot."""


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new recipe's name.")],
    datafile: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A CSV, TSV or JSONL file, or a folder with a folder of images a label."
        ),
    ],
    task: Annotated[
        str,
        typer.Option(help="text-classification, causal-lm, sentence-embedding or image-classification."),
    ] = "text-classification",
    base: Annotated[str | None, typer.Option(help="The pretrained model, as a source.")] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text, when it is not found.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label, when it is not found.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of what must not be split.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Column names, by commas, of a file without a header line.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="A test set of its own, in the same form.")] = None,
    label_separator: Annotated[
        str | None,
        typer.Option(help="What stands between the labels of a row that has several, in a CSV or TSV file."),
    ] = None,
    original: Annotated[
        Path | None,
        typer.Option(help="What the base could do before: a text (causal-lm), or labelled images."),
    ] = None,
) -> None:
    """Propose a recipe for a data file: columns, labels, bounds, each with its reason."""
    from flows.scaffold import Choice, scaffold

    root = find_root()
    names = tuple(part.strip() for part in columns.split(",")) if columns else ()
    choice = Choice(text, label, group, names, test, label_separator, original)
    path = scaffold(root, name, datafile, task, base, choice)
    say(f"wrote {path.relative_to(root)}, and listed {name} in params.yaml")
    say(f"next: read it, then  retain plan {name}  and  retain run {name}")


@app.command()
def plan(
    recipe: RecipeName,
    settings: Settings = None,
    profiles: Profiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show what would run, why, and roughly what it costs."""
    from flows.plan import make_plan

    root = find_root()
    changes = profile_changes(root, recipe, profiles or []) | parse_settings(settings or [])
    made = make_plan(root, recipe, changes)
    if as_json:
        import dataclasses

        say_json(dataclasses.asdict(made))
        return
    say_table(
        ("stage", "", "takes", "why"),
        [(stage.name, stage.state, _seconds(stage.seconds), "; ".join(stage.why)) for stage in made.stages],
    )
    say()
    say(_cost(made))


def _seconds(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _cost(made: Plan) -> str:
    if made.nothing_to_do:
        return "Nothing to do: every stage is up to date."
    sure, unknown_sure = made.seconds("runs")
    most, unknown = made.seconds("runs", "may run")
    parts = [f"About {duration(sure)}"] if sure or not unknown_sure else []
    if most > sure:
        parts.append(f"{duration(most)} at most" if parts else f"About {duration(most)} at most")
    if unknown:
        parts.append(f"{'and ' if parts else ''}unknown for {', '.join(unknown)} (no earlier run here)")
    if len(parts) == 1 and unknown:
        return "How long it takes is not known: these stages have not run here yet."
    return f"{', '.join(parts)}, by the last runs on this machine."


@app.command()
def run(
    recipe: RecipeName,
    settings: Settings = None,
    profiles: Profiles = None,
    promote: Annotated[
        bool | None,
        typer.Option(
            "--promote/--no-promote", help="Make a release that passes the champion; else as the recipe says."
        ),
    ] = None,
    register: Annotated[
        bool, typer.Option("--register/--no-register", help="Register the model when it passes.")
    ] = True,
    repin: Annotated[
        bool, typer.Option("--repin", help="Compare with the champion of now, not the one pinned before.")
    ] = False,
    if_running: Annotated[
        Literal["wait", "refuse"],
        typer.Option(help="When this recipe is already running: wait for it, or refuse."),
    ] = "wait",
) -> None:
    """Run the pipeline of a recipe: build what is out of date, decide, register. Ends with the summary."""
    root = _enter_root()
    changes = profile_changes(root, recipe, profiles or []) | parse_settings(settings or [])
    from flows.finetune import run_recipe

    result = run_recipe(
        recipe,
        changes=changes,
        promote=promote,
        register=register,
        repin=repin,
        if_running=if_running,
        root=root,
    )
    _tell(root, recipe, result)


def _tell(root: Path, recipe: str, result: FlowResult) -> None:
    """Print what came of a run; a refusal ends the command with its status."""
    say()
    say_markdown(result.summary or _markdown(root, recipe))
    for line in _came_of_it(result):
        say(line)
    if result.exit_code:
        why = result.refusal or f"{recipe} was not released."
        print(f"retain: refused ({result.verdict}): {why}", file=sys.stderr)
        raise typer.Exit(result.exit_code)


def profile_changes(root: Path, recipe: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the changes that a recipe's profiles make, later ones over earlier ones.

    Raises:
        ConfigError: the recipe has no profile of such a name.
    """
    from tasks.recipe import load_recipe, recipe_path

    known = load_recipe(recipe_path(root, recipe)).profiles
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"Recipe {recipe} has no profile {', '.join(unknown)}; it has {', '.join(known) or 'none'}."
        )
    return {field: value for name in names for field, value in known[name].items()}


def _markdown(root: Path, recipe: str) -> str:
    from tasks.paths import Paths
    from tasks.summary import as_markdown, read_reports, summarize

    return as_markdown(summarize(read_reports(Paths(root, recipe)), recipe))


def _came_of_it(result: FlowResult) -> Iterator[str]:
    if result.verdict == "GATE":
        ran = ", ".join(result.executed)
        yield f"Ran: {ran}. The stages after gate wait until it lets the data through."
    elif not (result.executed or result.restored or result.refusal):
        yield "Nothing to do: every stage is up to date."
    if result.version is not None:
        state = "released" if result.created else "was released before"
        crown = ", now the champion" if result.promoted else ""
        yield f"Version {result.version} {state}{crown}."
    if result.experiment:
        yield f"Kept as the experiment {result.experiment}: retain show {result.experiment} shows it again."
    if result.workspace:
        yield f"Its workspace is left at {result.workspace}; retain clean removes it."


@app.command()
def tune(
    recipe: RecipeName,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trainings in all; else as the recipe says.")
    ] = None,
    then_run: Annotated[
        bool, typer.Option("--run/--no-run", help="Run the pipeline with what the best trial had.")
    ] = True,
) -> None:
    """Search for the best model that forgets at most what the budget allows; the winner becomes a run."""
    root = _enter_root()
    from flows.tune import check_run_may_follow, margins, search
    from tasks.trials import winner

    allowed = margins(root, recipe)
    if then_run:
        check_run_may_follow(root)
    found = search(root, recipe, trials, say)
    say()
    say_table(
        ("trial", "gain", "nats", "α", "lost", "as tuned", "lost", "what"),
        [_trial_row(trial, allowed) for trial in found],
    )
    say(
        "gain: on validation, within the budget, at that α; as tuned: at α = 1. nats: how much likelier the labels of "
        "validation are, which orders the trials that gain, where there are labels. "
        "lost: the worst loss on the selection halves, as a share of what is allowed."
    )
    best = winner(found, allowed)
    if not then_run:
        words = "".join(f" --set {shlex.quote(setting)}" for setting in _settings(best, root, recipe))
        say(f"Trial {best.number} is the best. To run it: retain run {recipe}{words}")
        return
    say(f"Trial {best.number} is the best, and becomes a run.")
    from flows.finetune import run_recipe

    result = run_recipe(recipe, changes=best.changes, root=root)
    say()
    say(_same_model(best, result))
    _tell(root, recipe, result)


def _settings(trial: Trial, root: Path, recipe: str) -> list[str]:
    """Return what `--set` needs to make a trial's run: where it differs from the recipe."""
    from tasks.recipe import load_recipe, recipe_path

    trains = load_recipe(recipe_path(root, recipe)).finetune.model_dump(mode="json")
    return [
        f"{field}={json.dumps(value)}"
        for field, value in trial.changes.items()
        if trains[field.removeprefix("finetune.")] != value
    ]


def _same_model(trial: Trial, result: FlowResult) -> str:
    if result.model == trial.model:
        return f"The run made the very model that trial {trial.number} found, to the bit."
    return (
        f"The run's model is not trial {trial.number}'s to the bit: that takes a CPU, the same number of threads and "
        "the same libraries. What counts is what the run measured."
    )


def _trial_row(trial: Trial, allowed: Mapping[str, float]) -> tuple[str, ...]:
    if trial.gain is None or trial.tuned_gain is None:
        return (str(trial.number), trial.state, "", "", "", "", "", trial.settings)
    shares = [
        max((losses[name] / margin for name, margin in allowed.items()), default=0.0)
        for losses in (trial.kept or {}, trial.losses or {})
    ]
    kept, lost = (f"{max(share, 0.0):.0%}" for share in shares)
    likelier = trial.log_likelihood_gain
    return (
        str(trial.number),
        f"{trial.gain:+.4f}",
        "" if likelier is None else f"{likelier:+.4f}",
        f"{trial.alpha:g}",
        kept,
        f"{trial.tuned_gain:+.4f}",
        lost,
        trial.settings,
    )


@app.command()
def status() -> None:
    """List the recipes: fresh or stale, the last verdict, the champion."""
    from flows.plan import make_plan
    from tasks.recipe import load_recipe

    root = find_root()
    rows = []
    for path in sorted((root / "recipes").glob("*.yaml")):
        name = path.stem
        try:
            release = load_recipe(path).register_.name
            made = make_plan(root, name)
        except PipelineError as error:
            rows.append((name, "cannot run", "–", "–", error.message))
            continue
        waiting = [stage.name for stage in made.stages if stage.state == "runs"]
        freshness = "fresh" if made.nothing_to_do else f"stale: {', '.join(waiting)}"
        rows.append(
            (name, freshness, _last_verdict(root, name), release, release_commands.champion(root, release))
        )
    if not rows:
        say("no recipe yet: retain init NAME DATAFILE")
        return
    say_table(("recipe", "state", "last verdict", "release", "champion"), rows)


def _last_verdict(root: Path, recipe: str) -> str:
    from tasks.paths import Paths
    from tasks.summary import read_reports, summarize

    try:
        return summarize(read_reports(Paths(root, recipe)), recipe).outcome
    except StageError:
        return "–"


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|EXPERIMENT|NAME@ALIAS",
            help="A recipe's last run, a run with changes by its name, or a release (NAME@VERSION too).",
        ),
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.")] = None,
    benchmarks: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Of a release: write the benchmarks that it was measured on."),
    ] = None,
) -> None:
    """Show the summary of a run or a release: gained, forgotten, may it ship."""
    root = find_root()
    if benchmarks is not None:
        if "@" not in what:
            raise ConfigError(f"--benchmarks is of a release, NAME@ALIAS; {what} is none.")
        say(f"wrote {', '.join(release_commands.write_benchmarks(root, what, benchmarks))} to {benchmarks}")
        if html is None:
            return
    made = release_commands.release_summary(root, what) if "@" in what else run_summary(root, what)
    if html is None:
        from tasks.summary import as_markdown

        say_markdown(as_markdown(made))
        return
    from tasks.files import write_text
    from tasks.summary import as_html

    page = as_html(made)
    try:
        write_text(html, page)
    except OSError as error:
        if disk_full(error):
            raise
        raise ConfigError(f"--html {html} cannot be written: {error.strerror}.") from None
    say(f"wrote {html}")


def run_summary(root: Path, what: str) -> Summary:
    """Summarize the last run of a recipe, or the run with changes that was kept under this name.

    Raises:
        ConfigError: there is neither.
        StageError: it has left no reports here.
    """
    from flows.kept_runs import kept_run_summary, kept_runs
    from tasks.recipe import recipe_path

    if recipe_path(root, what).exists():
        return recipe_summary(root, what)
    kept = kept_runs(root)
    for run in kept:
        if run.name == what:
            return kept_run_summary(root, run)
    recipes = sorted(path.stem for path in (root / "recipes").glob("*.yaml"))
    names = [run.name for run in kept]
    raise ConfigError(
        f"There is no recipe and no experiment {what}{did_you_mean(what, [*recipes, *names]) or ':'}",
        [
            f"recipes: {', '.join(recipes) or 'none'}",
            f"experiments, the newest: {', '.join(names[:5]) or 'none'} (`dvc exp list --all-commits` lists all)",
        ],
    )


def recipe_summary(root: Path, recipe: str) -> Summary:
    """Summarize the last run of a recipe, and say so first when something has changed since."""
    from flows.plan import make_plan
    from tasks.paths import Paths
    from tasks.recipe import load_recipe, recipe_path
    from tasks.summary import read_reports, summarize

    load_recipe(recipe_path(root, recipe))
    try:
        reports = read_reports(Paths(root, recipe))
    except StageError as error:
        raise StageError(error.message, [*error.problems, *_kept(root, recipe)]) from None
    stale: dict[str, list[str]] = {}
    for stage in make_plan(root, recipe).stages:
        if stage.state == "runs":
            stale.setdefault(stage.why[0], []).append(stage.name)
    why = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in stale.items())
    notes = [f"Out of date: {why}. To bring it up to date: retain run {recipe}"] if stale else []
    return summarize(reports, recipe, notes=notes)


def _kept(root: Path, recipe: str) -> Iterator[str]:
    """Yield the way to the newest run that was kept as an experiment, if there is one."""
    from flows.kept_runs import kept_runs

    for run in [run for run in kept_runs(root) if run.recipe == recipe][:1]:
        yield f"its last run with changes is kept as the experiment {run.name}: `retain show {run.name}` shows it"


@app.command()
def layers(recipe: RecipeName, settings: Settings = None, profiles: Profiles = None) -> None:
    """Show which layers of the base model train, and at which peak rate."""
    from flows.plan import changed_recipe
    from tasks.training.preview import preview_layers

    root = find_root()
    changes = profile_changes(root, recipe, profiles or []) | parse_settings(settings or [])
    found = preview_layers(changed_recipe(root, recipe, changes), root)
    rows = [
        (
            str(layer.depth),
            f"{layer.parameters:,}",
            f"{layer.trained_parameters:,}",
            f"{layer.rate:.3g}" if layer.trains else "frozen",
            layer.names[0] + (f" … {layer.names[-1]}" if len(layer.names) > 1 else ""),
        )
        for layer in found
    ]
    say_table(("depth", "parameters", "train", "rate", "holds"), rows)
    trained = sum(layer.trained_parameters for layer in found)
    say(f"\n{trained:,} of {sum(layer.parameters for layer in found):,} parameters train.")


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[int, typer.Option(metavar="DAYS", min=0, help="Keep what is younger.")] = 14,
    with_store: Annotated[
        bool, typer.Option("--store", help="Fetched base models, sources and measurements too.")
    ] = False,
    with_registry: Annotated[
        bool, typer.Option("--registry", help="Files in the registry that no version names, too.")
    ] = False,
) -> None:
    """Remove old workspaces, scratch checkpoints and experiments; never a result."""
    from flows.clean import leftovers, remove

    root = _enter_root()
    found = leftovers(root, older_than, with_store=with_store, with_registry=with_registry)
    if not found:
        say(f"Nothing to remove that is {older_than} days old.")
        return
    rows = [
        (item.kind, item.name, f"{item.bytes / 2**20:.1f} MiB", f"{item.days:.0f} days") for item in found
    ]
    say_table(("what", "name", "size", "unchanged for"), rows)
    say()
    total = sum(item.bytes for item in found) / 2**20
    if dry_run:
        say(f"{len(found)} thing(s), {total:.1f} MiB. To remove them: the same without --dry-run.")
        return
    remove(root, found)
    say(f"Removed {len(found)} thing(s), {total:.1f} MiB.")


@app.command()
def fetch(recipe: RecipeName) -> None:
    """Fetch the raw data and the base model of a recipe; DVC pins the data."""
    from flows.build import open_repo
    from flows.fetch import fetch_data
    from tasks.paths import Paths
    from tasks.recipe import load_recipe, recipe_path
    from tasks.sources import resolve_base

    root = _enter_root()
    read = load_recipe(recipe_path(root, recipe))
    paths = Paths(root, recipe)
    with open_repo(root) as repo:
        done = fetch_data(repo, read, paths)
    say(f"data: {paths.raw.relative_to(root)} {done}")
    say(f"base: {resolve_base(read.base, root).resolved}")


@app.command()
def serve(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the server on this machine; 0 takes a free one.")
    ] = 4200,
    cron: Annotated[
        str | None, typer.Option(help="When to retrain, in UTC; Mondays at three ('0 3 * * 1') if not given.")
    ] = None,
) -> None:
    """Start server, worker and schedule on this machine, until Ctrl-C."""
    root = _enter_root()
    from flows.serve import serve as serve_until_stopped

    serve_until_stopped(root, port, cron)


@app.command()
def doctor() -> None:
    """Say what this machine has, and what would keep a run from working."""
    from flows.doctor import examine

    bad = 0
    for finding in examine(find_root()):
        bad += finding.level == "bad"
        say(f"{finding.level:<5}{finding.subject}: {finding.text}")
        if finding.remedy:
            say(f"     → {finding.remedy}")
    if bad:
        raise typer.Exit(1)


release_commands.add_to(app)
