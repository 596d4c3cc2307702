"""The command line: one command per function of `onnxq.api`. The recipe's flags derive from the fields of Recipe."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click  # noqa: TID251  this is the wall

import onnxq
from onnxq.errors import OnnxqError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.report import Summary

EXIT_FAILED, EXIT_USAGE = 1, 2

Command = "Callable[..., None]"


def main() -> None:
    """Run the command line; every error meant for the user is printed here, without a traceback."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; nothing was written", err=True)
        sys.exit(130)
    except OnnxqError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        sys.exit(EXIT_USAGE if isinstance(error, RecipeError) else EXIT_FAILED)
    except (OSError, MemoryError) as error:
        click.echo(f"error: {type(error).__name__}: {error}", err=True)
        sys.exit(EXIT_FAILED)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(onnxq.__version__, prog_name="onnxq")
def cli() -> None:
    """Quantize ONNX models to int8 for TensorRT and ONNX Runtime."""


# -- shared options --------------------------------------------------------------------------------------------


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags, one for each of its plain fields, over --recipe."""
    from onnxq.recipe import Recipe

    for field in reversed([f for f in dataclasses.fields(Recipe) if "help" in f.metadata]):
        text = field.metadata["help"]
        if field.metadata["choices"]:
            text += f" One of: {', '.join(field.metadata['choices'])}."
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type={"float": float, "int | None": int}.get(str(field.type), str),
            help=text if field.default in (None, "") else f"{text} [default: {field.default}]",
        )(command)
    command = click.option("--exclude", multiple=True, metavar="GLOB", help="Leave nodes of these names in float.")(
        command
    )
    command = click.option("--exclude-op", multiple=True, metavar="OP", help="Leave operators of this type in float.")(
        command
    )
    return click.option("--recipe", "recipe_file", metavar="TOML", help="Recipe file; flags win over it.")(command)


def _talk_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("-v", "--verbose", is_flag=True, help="Say more: every node left in float.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")(command)


def _recipe(options: dict[str, Any]) -> Recipe:
    """The recipe that --recipe and the flags make together."""
    from onnxq.recipe import Recipe, Rule

    base = Recipe.from_toml(options["recipe_file"]) if options["recipe_file"] else Recipe()
    rules = tuple(Rule(nodes=glob, quantize=False) for glob in options["exclude"])
    rules += tuple(Rule(ops=(op,), quantize=False) for op in options["exclude_op"])
    names = {f.name for f in dataclasses.fields(Recipe)}
    given = {name: value for name, value in options.items() if name in names and value is not None}
    return dataclasses.replace(base, rules=base.rules + rules, **given)


# -- commands --------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", help="Calibration data: folder, .npz, .npy, .json, script.py[:function], random:N.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Output file [default: <name>.int8.onnx here].")
@click.option("--statistics", "statistics_file", help="Statistics from `onnxq calibrate`, in place of --data.")
@_recipe_options
@_talk_options
def quantize(
    model: Path,
    data: str | None,
    output: Path | None,
    statistics_file: str | None,
    **options: Any,
) -> None:
    """Quantize MODEL to int8, and write it with its plan."""
    from onnxq import api, files, report
    from onnxq.progress import shown
    from onnxq.statistics import Statistics

    if data and statistics_file:
        raise click.UsageError("give --data or --statistics, not both")
    recipe = _recipe(options)
    output = output or api.default_output(model)
    files.check_writable(output, model)
    with shown(quiet=options["quiet"]) as monitor:
        if data is None and statistics_file is None:
            data = _data_beside(model, monitor.warn)
        ready = api.prepared(model, recipe, monitor)
        statistics = Statistics.load(statistics_file) if statistics_file else None
        if data is not None:
            statistics = api.observe(ready, data, monitor)
        graph, plan = api.lowered(ready, statistics, monitor)
        monitor.stage("Checking and writing", None)
        written = api.export(graph, output)
        plan_file = output.with_suffix(".plan.json")
        files.write_text(plan_file, report.plan_json(plan, recipe, statistics))
    if not options["quiet"]:
        before = files.model_bytes(model)
        after = sum(p.stat().st_size for p in written)
        _print_result(report.summarize(plan, before, after), plan, output, plan_file, verbose=options["verbose"])
        for what, line in report.next_steps(plan, graph, output, statistics):
            click.echo(f"next, {what}:\n  {line}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Calibration data, as for `quantize`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Statistics file (.npz) to write.")
@_recipe_options
@_talk_options
def calibrate(
    model: Path,
    data: str,
    output: Path,
    **options: Any,
) -> None:
    """Run MODEL over the data once and save what was observed."""
    from onnxq import api, files
    from onnxq.progress import shown

    recipe = _recipe(options)
    files.check_writable(output, model)
    with shown(quiet=options["quiet"]) as monitor:
        statistics = api.calibrate(model, data, recipe, monitor)
        api.save_statistics(statistics, output)
    if not options["quiet"]:
        click.echo(f"{output}: {len(statistics.tensors)} tensors, {statistics.samples} samples")


@cli.command()
@click.argument("statistics", nargs=-1, required=True, metavar="STATISTICS...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Statistics file (.npz) to write.")
@_talk_options
def merge(statistics: tuple[str, ...], output: Path, **options: Any) -> None:
    """Add up statistics files of one model, in any order."""
    from onnxq import api, files

    files.check_writable(output)
    total = api.merge(statistics)
    api.save_statistics(total, output)
    if not options["quiet"]:
        click.echo(f"{output}: {len(total.tensors)} tensors, {total.samples} samples")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@_recipe_options
@_talk_options
def plan(
    model: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what would be quantized in MODEL, and why not the rest. Needs no data."""
    from onnxq import api, report
    from onnxq.progress import shown

    recipe = _recipe(options)
    with shown(quiet=options["quiet"] or as_json) as monitor:
        made = api.make_plan(model, recipe, monitor)
    if as_json:
        click.echo(report.plan_json(made, recipe, None), nl=False)
        return
    _print_decisions(made, every=options["verbose"])
    _print_summary(report.summarize(made))


@cli.command()
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data to compare on, as for `quantize`; better not the calibration data.")
@click.option("--layers", is_flag=True, help="Compare every tensor both models have, not only the outputs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_recipe_options
@_talk_options
def compare(
    reference: Path,
    quantized: Path,
    data: str,
    layers: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Errors of the QUANTIZED model against the FLOAT one, worst first."""
    from onnxq import api, report
    from onnxq.progress import shown

    with shown(quiet=options["quiet"] or as_json) as monitor:
        found = api.compare(reference, quantized, data, _recipe(options), layers=layers, monitor=monitor)
    if as_json:
        click.echo(report.comparison_json(found), nl=False)
        return
    worst = found.worst if options["verbose"] or not layers else found.worst[:20]
    rows = [(f"{e.sqnr_db:.2f}", f"{e.cosine:.6f}", f"{e.max_abs:.4g}", f"{e.amax:.4g}", e.tensor) for e in worst]
    _print_table(("SQNR dB", "cosine", "max error", "max value", "tensor"), rows)
    click.echo(
        f"over {found.samples} samples" + (f"; {len(found.errors)} tensors, --verbose for all" if layers else "")
    )


# -- printing --------------------------------------------------------------------------------------------------


def _data_beside(model: Path, warn: Callable[[str], None]) -> str | None:
    from onnxq.data import find_beside

    found = find_beside(model)
    if found is not None:
        warn(f"no --data given; taking {found}, found beside the model")
        return str(found)
    warn(
        "NO CALIBRATION DATA: only the weights are quantized, activations stay in float and nothing runs in int8. "
        f"Give --data, or put {model.stem}.npz or {model.stem}_calib/ beside the model."
    )
    return None


def _print_result(summary: Summary, plan: Plan, output: Path, plan_file: Path, *, verbose: bool) -> None:
    if verbose:
        _print_decisions(plan, every=True)
    _print_summary(summary)
    size = f"{_size(summary.bytes_before)} -> {_size(summary.bytes_after)}"
    click.echo(f"wrote {output} ({size}) and {plan_file}")


def _print_summary(summary: Summary) -> None:
    rows = [(str(count), op, reason) for reason, op, count in summary.reasons]
    if rows:
        click.echo("weighted operators left in float:")
        _print_table(("count", "operator", "reason"), rows)
    click.echo(f"int8: {summary.int8} of {summary.weighted} weighted operators, {summary.mac_share:.1%} of their MACs")


def _print_decisions(plan: Plan, *, every: bool) -> None:
    shown = [d for d in plan.decisions if every or d.macs or d.quantized]
    _print_table(
        ("precision", "operator", "node", "reason"),
        [("int8" if d.quantized else "float", d.op_type, d.node, d.reason) for d in shown],
    )


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: TID251  behind the wall, where it is needed
    from rich.console import Console  # noqa: TID251  likewise
    from rich.table import Table  # noqa: TID251  likewise
    from rich.text import Text  # noqa: TID251  likewise

    table = Table(*header, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)


def _size(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
