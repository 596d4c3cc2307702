"""The command line: one command per function of `onnxq.api`. The recipe's flags derive from the fields of Recipe."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click  # noqa: TID251  this is the wall

import onnxq
from onnxq.errors import AccuracyError, OnnxqError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.recipe import Recipe

EXIT_FAILED, EXIT_USAGE, EXIT_REFUSED = 1, 2, 3


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
    except BrokenPipeError:  # whoever read the output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
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
            type={"float": float, "int | None": int, "bool": bool}.get(str(field.type), str),
            is_flag=str(field.type) == "bool",
            default=None,
            help=text if field.default in (None, "", False) else f"{text} [default: {field.default}]",
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


def _paths(*given: str | Path | None) -> list[Path]:
    """What was given of files; a text that is none, as random:8, is a path that does not exist."""
    return [Path(item) for item in given if item]


# -- commands --------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", help="Calibration data: folder, .npz, .npy, .json, script.py[:function], random:N.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Output file [default: <name>.int8.onnx here].")
@click.option("--statistics", "statistics_file", help="Statistics from `onnxq calibrate`, in place of --data.")
@click.option("--calibration-cache", "cache_file", help="TensorRT's calib.cache: its scales win over the data's.")
@_recipe_options
@_talk_options
def quantize(
    model: Path,
    data: str | None,
    output: Path | None,
    statistics_file: str | None,
    cache_file: str | None,
    **options: Any,
) -> None:
    """Quantize MODEL to int8, and write it with its plan."""
    from onnxq import api, files, report, tables
    from onnxq.caches import read_cache
    from onnxq.progress import shown
    from onnxq.statistics import Statistics

    if data and statistics_file:
        raise click.UsageError("give --data or --statistics, not both")
    recipe = _recipe(options)
    output = output or api.default_output(model)
    plan_file = output.with_suffix(".plan.json")
    for file in (output, plan_file):
        files.check_writable(file, *_paths(model, data, statistics_file, cache_file, options["recipe_file"]))
    with shown(quiet=options["quiet"]) as monitor:
        cache = read_cache(cache_file) if cache_file else None
        given = Statistics.load(statistics_file) if statistics_file else data
        ready = api.prepared(model, recipe, monitor)
        if given is None and cache is None and ready.plan.mode == "static":
            given = _data_beside(model, monitor.warn)
        statistics = api.measured(ready, given, monitor, cache)
        graph, plan = api.lowered(ready, statistics, monitor, cache)
        monitor.stage("Checking and writing", None)
        written = api.export(graph, output)
        files.write_text(plan_file, report.plan_json(plan, recipe, statistics))
    if not options["quiet"]:
        before = files.model_bytes(model)
        after = sum(p.stat().st_size for p in written)
        if options["verbose"]:
            click.echo(tables.decisions(plan, every=True))
        for line in tables.result(report.summarize(plan, before, after), [*written, plan_file]):
            click.echo(line)
        for what, line in report.next_steps(plan, graph, output, statistics):
            click.echo(f"next, {what}:\n  {line}")


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Calibration data, as for `quantize`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Statistics file (.npz) to write.")
@click.option("--all-tensors", is_flag=True, help="Observe every float activation, as `export-cache` wants it.")
@_recipe_options
@_talk_options
def calibrate(
    model: Path,
    data: str,
    output: Path,
    all_tensors: bool,
    **options: Any,
) -> None:
    """Run MODEL over the data once and save what was observed."""
    from onnxq import api, files
    from onnxq.progress import shown

    recipe = _recipe(options)
    files.check_writable(output, *_paths(model, data, options["recipe_file"]))
    with shown(quiet=options["quiet"]) as monitor:
        statistics = api.calibrate(model, data, recipe, monitor, all_tensors=all_tensors)
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

    files.check_writable(output, *_paths(*statistics))
    total = api.merge(statistics)
    api.save_statistics(total, output)
    if not options["quiet"]:
        click.echo(f"{output}: {len(total.tensors)} tensors, {total.samples} samples")


@cli.command("export-cache")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--statistics", "statistics_file", required=True, help="From `onnxq calibrate --all-tensors`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Cache to write.")
@click.option("--algorithm", default="entropy2", help="Builder's calibrator: entropy2, entropy, minmax. [entropy2]")
@click.option("--trt-version", default="8.6.1", help="Builder's version, as 8.6.1, 8601 or 100300. [8.6.1]")
@click.option("--layout", type=click.Choice(["tensorrt", "ort"]), default="tensorrt", show_default=True)
@_recipe_options
@_talk_options
def export_cache(
    model: Path,
    statistics_file: str,
    output: Path,
    algorithm: str,
    trt_version: str,
    layout: Literal["tensorrt", "ort"],
    **options: Any,
) -> None:
    """Write a calibration cache for TensorRT 8 and 10, or the table of ONNX Runtime's TensorRT provider (ort)."""
    from onnxq import exchange, files
    from onnxq.caches import write_cache
    from onnxq.progress import shown
    from onnxq.statistics import Statistics

    recipe = _recipe(options)
    files.check_writable(output, *_paths(model, statistics_file, options["recipe_file"]))
    seen = Statistics.load(statistics_file)
    with shown(quiet=options["quiet"]) as monitor:
        cache = exchange.make_cache(model, seen, recipe, algorithm=algorithm, version=trt_version, monitor=monitor)
        write_cache(cache, output, layout)
    if options["quiet"]:
        return
    click.echo(f"{output}: {len(cache.scales)} tensors")
    if lacking := exchange.without_scale(model, cache):
        click.echo(f"without a scale, so in float, {len(lacking)} tensors of the model: {', '.join(lacking)}")
        click.echo("  More are observed by `onnxq calibrate --all-tensors`; those that folding removes need none.")


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


@cli.command()
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="Data to compare on, as for `quantize`; better not the calibration data.")
@click.option("--layers", is_flag=True, help="Compare every tensor both models have, not only the outputs.")
@click.option("--fail-below", type=float, metavar="DB", help="Exit status 1 when the SQNR of an output is lower.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_recipe_options
@_talk_options
def compare(
    reference: Path,
    quantized: Path,
    data: str,
    layers: bool,
    fail_below: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Errors of the QUANTIZED model, from whatever tool, against the FLOAT one, worst first."""
    from onnxq import api, report, tables
    from onnxq.progress import shown

    with shown(quiet=options["quiet"] or as_json) as monitor:
        found = api.compare(reference, quantized, data, _recipe(options), layers=layers, monitor=monitor)
    if as_json:
        click.echo(report.comparison_json(found), nl=False)
    elif not options["quiet"]:
        for line in tables.comparison(found, every=options["verbose"]):
            click.echo(line)
    if fail_below is not None and (low := found.below(fail_below)):
        raise AccuracyError(
            f"{len(low)} of {len(found.outputs)} outputs are below {fail_below:g} dB: "
            + ", ".join(f"{e.tensor!r} {e.sqnr_db:.2f} dB" for e in low[:5]),
            "`onnxq compare --layers` shows where the error arises; `--effort balanced` and rules lower it.",
        )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Say more: every node and every tensor.")
def show(model: Path, as_json: bool, verbose: bool) -> None:
    """Show how MODEL, from whatever tool, is quantized: precision of nodes, scales of tensors, bytes by type."""
    from onnxq import files, tables
    from onnxq.inventory import look_at

    found = look_at(model)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
        return
    for line in tables.inventory(found, str(model), files.model_bytes(model), every=verbose):
        click.echo(line)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", default="tensorrt", show_default=True, help="tensorrt@8, @10, @11; ort-cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {summary, findings}; for ort-cpu {summary, nodes}.")
@click.option("--data", default="random:1", show_default=True, help="ort-cpu: what MODEL is run on, its first sample.")
@click.option("--shapes", default="", help="ort-cpu: sizes of dynamic inputs, as in x:1x3x224x224,y:[1,4].")
@click.option("--measure", is_flag=True, help="ort-cpu: measure latency against --float too.")
@click.option("--float", "reference", type=click.Path(path_type=Path), help="The float model, for --measure.")
@_talk_options
def check(model: Path, target: str, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Will the target take MODEL, and run it in int8? Exit status 3 when it will not take it.

    MODEL may come from any tool. Needs no GPU and no TensorRT: docs/check.md lists the rules. For ort-cpu it is
    optimized and run by ONNX Runtime; status 3 says that something quantized runs in float all the same.
    """
    from onnxq import api, tables
    from onnxq.checks import text

    if target == "ort-cpu":
        sys.exit(_prove(model, target, as_json, quiet=quiet, verbose=verbose, **options))
    report = api.check(model, target)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    elif not quiet or not report.legal:
        if found := text.rows(report, every=verbose):
            click.echo(tables.table(text.HEADER, list(found)))
        for rule, hint in text.advice(report):
            click.echo(f"{rule}: {hint}")
        for line in text.summary(report, every=verbose):
            click.echo(line)
    if not report.legal:
        sys.exit(EXIT_REFUSED)


def _prove(model: Path, target: str, as_json: bool, **options: Any) -> int:
    """Print what ONNX Runtime runs; the exit status."""
    from onnxq import proof, tables
    from onnxq.proving import prove

    if options["measure"] and options["reference"] is None:
        raise click.UsageError("--measure wants the float model: --float FILE")
    reference = options["reference"] if options["measure"] else None
    found = prove(model, target, options["data"], shapes=options["shapes"], reference=reference)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=1))
    elif not options["quiet"] or not found.legal:
        click.echo(tables.table(proof.HEADER, proof.rows(found, every=options["verbose"])))
        for line in proof.lines(found):
            click.echo(line)
    return 0 if found.legal else EXIT_REFUSED


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
