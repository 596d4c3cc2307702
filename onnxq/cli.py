"""The command line: one command per function of `onnxq.api`. The recipe's flags derive from the fields of Recipe."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click  # noqa: TID251  this is the wall

import onnxq
from onnxq import cli_search, cli_statistics, cli_views
from onnxq.cli_options import importing, one_file, resumable
from onnxq.cli_options import paths as _paths
from onnxq.cli_options import placing_options as _placing_options
from onnxq.cli_options import recipe as _recipe
from onnxq.cli_options import recipe_options as _recipe_options
from onnxq.cli_options import resume_option as _resume_option
from onnxq.cli_options import talk_options as _talk_options
from onnxq.errors import OnnxqError, OutputError, RecipeError, what_failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.recipe import Recipe
    from onnxq.search import Evaluation


EXIT_FAILED, EXIT_USAGE = 1, 2
_FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # None: numpy's, of a write that stopped half way


def main() -> None:
    """Run the command line; every error meant for the user is printed here, without a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is as good as Ctrl-C
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; no output was written", err=True)
        sys.exit(130)
    except OnnxqError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, RecipeError) else EXIT_FAILED)
    except BrokenPipeError:  # whoever read the output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except OSError as error:
        click.echo(f"error: {what_failed(error)}{f': {error.filename}' if error.filename else ''}", err=True)
        if error.errno in _FULL:
            click.echo(
                f"  Temporary files go to {tempfile.gettempdir()}; the variable TMPDIR names another folder.", err=True
            )
        sys.exit(EXIT_FAILED)
    except MemoryError as error:
        click.echo(f"error: not enough memory{f': {error}' if str(error) else ''}", err=True)
        sys.exit(EXIT_FAILED)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(onnxq.__version__, prog_name="onnxq")
def cli() -> None:
    """Quantize ONNX models to int8 for TensorRT and ONNX Runtime."""


for command in (
    *(cli_statistics.calibrate, cli_statistics.merge, cli_statistics.export_cache, cli_statistics.export_scales),
    *(cli_views.formats, cli_views.compare, cli_views.show, cli_views.check, cli_search.sensitivity),
):
    cli.add_command(command)

# -- commands --------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@one_file("--data", help="Calibration data: folder, .npz, .npy, .tar, .parquet, .json, script.py[:load], random:N.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Output file [default: here, <name>.int8.onnx, .int4.onnx, .fp16.onnx ... by what it holds].",
)
@one_file("--statistics", "statistics_file", help="Statistics from `onnxq calibrate`, in place of --data.")
@one_file("--calibration-cache", "cache_file", help="TensorRT's calib.cache: its scales win over the data's.")
@one_file("--eval-data", help="Held-back data to judge a budget on. [default: a quarter of --data]")
@click.option("--measure", is_flag=True, help="ort-*, with a budget: time its Pareto list in ONNX Runtime here.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write a page (.html) on the result as well.")
@_resume_option
@_recipe_options
@_talk_options
def quantize(
    model: Path,
    data: str | None,
    output: Path | None,
    statistics_file: str | None,
    cache_file: str | None,
    eval_data: str | None,
    page: Path | None,
    **options: Any,
) -> None:
    """Quantize MODEL to int8, and write it with its plan."""
    with importing():
        from onnxq import api, files, report, tables
        from onnxq.caches import read_cache
        from onnxq.intake import sized
        from onnxq.parts import Running
        from onnxq.progress import shown
        from onnxq.statistics import Statistics
        from onnxq.timing import Watch
        from onnxq.weights import needs_data

    recipe, watch = _recipe(options), Watch()
    output = output or api.default_output(model, recipe)
    plan_file = _plan_of(output)
    _refuse(
        {
            "give --data or --statistics, not both": data and statistics_file,
            "--eval-data is for a budget (--min-sqnr, --max-drop) or --report; there is neither": eval_data
            and not (recipe.budgeted or page),
            "--measure times the list of a budget (--min-sqnr, --max-drop); there is none": options["measure"]
            and not recipe.budgeted,
            f"--report {page} is the name of another output": page in (output, plan_file),
            **{
                f"--{name.replace('_', '-')} is about reading data, and --statistics reads none": options[name]
                for name in ("max_samples", "skip_bad", "shard", "memory", "resume")
                if statistics_file and not eval_data
            },
        }
    )
    for file in (output, plan_file, *_paths(page)):
        files.check_writable(file, *_paths(model, data, statistics_file, cache_file, options["recipe_file"]))
    with resumable(output, resume=options["resume"]) as keeper, shown(quiet=options["quiet"]) as talk:
        monitor = watch.on(talk)
        cache = read_cache(cache_file) if cache_file else None
        given = Statistics.load(statistics_file) if statistics_file else data
        ready = api.prepared(model, recipe, monitor)
        wants = ready.plan.mode == "static" or needs_data(recipe, ready.plan.mode)
        if given is None and cache is None and wants:
            given = _data_beside(model, monitor.warn, needed=recipe.budgeted or needs_data(recipe, ready.plan.mode))
        judged_by = _evaluation(recipe, eval_data, measure=options["measure"])
        running = Running(keeper=keeper)
        graph, plan, statistics = api.carried_out(ready, given, monitor, cache, judged_by, running)
        monitor.stage("Checking and writing", None)
        text = report.plan_json(plan, recipe, statistics)
        written = api.export(graph, output, {plan_file: text})
        if page is not None:
            from onnxq import reporting  # jinja2 and all, which others need not wait for

            feeds = eval_data or (None if isinstance(given, Statistics) else given)
            measured = reporting.measured(model, graph, feeds, recipe, monitor) if feeds else None
            seen = reporting.run_histograms(plan, statistics)
            made = reporting.run_page(
                model, output, json.loads(text), seen, measured, held_back=bool(eval_data), version=onnxq.__version__
            )
            files.write_text(page, made)
        stages = watch.stages()
    if not options["quiet"]:
        before = files.model_bytes(model)
        after = sum(p.stat().st_size for p in written)
        if options["verbose"]:
            click.echo(tables.decisions(plan, every=True))
            click.echo(tables.times(stages))
        for line in tables.budget(plan.budget) if plan.budget else ():
            click.echo(line)
        told = statistics is not None or recipe.budgeted  # by data
        summary = report.summarize(plan, before, after, sized=told or sized(ready.graph, recipe.shapes))
        result = tables.result(plan, summary, [*written, plan_file, *_paths(page)])
        for line in (*result, *tables.interface(plan.interface)):
            click.echo(line)
        steps = report.next_steps(plan, recipe, graph, output, statistics, given)
        for what, line in (report.how_near(model, output, recipe, eval_data or given), *steps):
            click.echo(f"next, {what}:\n  {line}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@_placing_options
@_talk_options
def plan(
    model: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what would be quantized in MODEL, and why not the rest. Needs no data."""
    from onnxq import api, report, tables
    from onnxq.progress import shown

    recipe = _recipe(options)
    with shown(quiet=options["quiet"] or as_json) as monitor:
        made = api.make_plan(model, recipe, monitor)
    if as_json:
        click.echo(report.plan_json(made, recipe, None), nl=False)
        return
    click.echo(tables.decisions(made, every=options["verbose"]))
    for line in (*tables.summary_lines(report.summarize(made)), *(f"note: {note}" for note in made.notes)):
        click.echo(line)
    if made.empty:
        click.echo(f"nothing to quantize: {made.why_empty()}")


def _evaluation(recipe: Recipe, data: str | None, *, measure: bool) -> Evaluation | None:
    """What a budget is judged on, where there is one."""
    if not recipe.budgeted:
        return None
    from onnxq.search import Evaluation

    return Evaluation(data, measure=measure)


def _plan_of(output: Path) -> Path:
    if not output.name:  # "." has none; other folders are found where it is looked whether they can be written
        raise OutputError(f"{output} is a folder", "Name a file in it.")
    return output.with_suffix(".plan.json")


def _refuse(wrong: dict[str, object]) -> None:
    """Raise UsageError with the first text that is true."""
    for text, true in wrong.items():
        if true:
            raise click.UsageError(text)


def _data_beside(model: Path, warn: Callable[[str], None], *, needed: bool) -> str | None:
    """Data found beside the model; without it a warning, unless it is `needed` and an error is to come."""
    from onnxq.data import find_beside

    found = find_beside(model)
    if found is not None:
        warn(f"no --data given; taking {found}, found beside the model")
        return str(found)
    if needed:
        return None
    warn(
        "NO CALIBRATION DATA: only the weights are quantized, activations stay in float and nothing runs in int8. "
        f"Give --data, or put {model.stem}.npz or {model.stem}_calib/ beside the model."
    )
    return None
