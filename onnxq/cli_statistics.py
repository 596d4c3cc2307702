"""The commands that make and use statistics files: calibrate, merge, export-cache."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import click  # noqa: TID251  this is the wall

import onnxq
from onnxq.cli_options import (
    importing,
    named,
    observing_options,
    one_file,
    paths,
    quiet_option,
    ranging_options,
    resumable,
    resume_option,
    talk_options,
)
from onnxq.cli_options import recipe as recipe_of


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@one_file("--data", required=True, help="Calibration data, as for `quantize`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Statistics file (.npz) to write.")
@one_file("--dask", metavar="SCHEDULER", help="Address of a Dask scheduler, whose workers run the samples.")
@resume_option
@click.option(
    "--all-tensors",
    is_flag=True,
    help="Observe every float activation, as `export-cache` wants it, with --effort fast.",
)
@observing_options
@talk_options
def calibrate(
    model: Path,
    data: str,
    output: Path,
    dask: str | None,
    resume: bool,
    all_tensors: bool,
    **options: Any,
) -> None:
    """Run MODEL over the data once and save what was observed."""
    with importing():
        from onnxq import api, files, tables
        from onnxq.parts import Running, dask_client
        from onnxq.progress import shown
        from onnxq.timing import Watch

    recipe, watch = recipe_of(options), Watch()
    files.check_writable(output, *paths(model, data, options["recipe_file"]))
    workers = dask_client(dask) if dask else nullcontext()
    with resumable(output, resume=resume) as keeper, workers as client, shown(quiet=options["quiet"]) as talk:
        monitor = watch.on(talk)
        statistics = api.calibrate(
            model, data, recipe, monitor, all_tensors=all_tensors, running=Running(client, keeper)
        )
        files.write_aside(output, statistics.save)
    if options["verbose"] and not options["quiet"]:
        click.echo(tables.times(watch.stages()))
    if not options["quiet"]:
        click.echo(f"{output}: {len(statistics.tensors or statistics.bounds)} tensors, {statistics.samples} samples")


@click.command()
@click.argument("statistics", nargs=-1, required=True, metavar="STATISTICS...", callback=named)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Statistics file (.npz) to write.")
@quiet_option
def merge(statistics: tuple[str, ...], output: Path, **options: Any) -> None:
    """Add up statistics files of one model, in any order."""
    from onnxq import files
    from onnxq.progress import shown

    files.check_writable(output, *paths(*statistics))
    with shown(quiet=options["quiet"]) as monitor:
        total = onnxq.merge(statistics, monitor)
    files.write_aside(output, total.save)
    if not options["quiet"]:
        click.echo(f"{output}: {len(total.tensors or total.bounds)} tensors, {total.samples} samples")


@click.command("export-cache")
@click.argument("model", type=click.Path(path_type=Path))
@one_file("--statistics", "statistics_file", required=True, help="From `onnxq calibrate --all-tensors --effort fast`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Cache to write.")
@click.option("--algorithm", help="Builder's calibrator: entropy2, entropy, minmax. [entropy2]")
@click.option("--trt-version", help="Builder's version, as 8.6.1, 8601 or 100300. [8.6.1]")
@click.option("--layout", type=click.Choice(["tensorrt", "ort"]), default="tensorrt", show_default=True)
@ranging_options
@quiet_option
def export_cache(
    model: Path,
    statistics_file: str,
    output: Path,
    algorithm: str | None,
    trt_version: str | None,
    layout: Literal["tensorrt", "ort"],
    **options: Any,
) -> None:
    """Write a calibration cache for TensorRT 8 and 10, or the table of ONNX Runtime's TensorRT provider (ort)."""
    from onnxq import exchange, files
    from onnxq.caches import write_cache
    from onnxq.progress import shown
    from onnxq.statistics import Statistics

    if layout == "ort" and (algorithm or trt_version):
        said = "--algorithm" if algorithm else "--trt-version"
        raise click.UsageError(f"{said} is for --layout tensorrt: the table of ONNX Runtime names neither")
    recipe, header = recipe_of(options), {"algorithm": algorithm or "entropy2", "version": trt_version or "8.6.1"}
    files.check_writable(output, *paths(model, statistics_file, options["recipe_file"]))
    seen = Statistics.load(statistics_file)
    with shown(quiet=options["quiet"]) as monitor:
        cache = exchange.make_cache(model, seen, recipe, **header, monitor=monitor)
        write_cache(cache, output, layout)
    if options["quiet"]:
        return
    click.echo(f"{output}: {len(cache.scales)} tensors")
    if lacking := exchange.without_scale(model, cache):
        click.echo(f"without a scale, so in float, {len(lacking)} tensors of the model: {', '.join(lacking)}")
        click.echo("  More are observed by `onnxq calibrate --all-tensors`; those that folding removes need none.")


@click.command("export-scales")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@quiet_option
def export_scales(model: Path, output: Path, **options: Any) -> None:
    """Write the scales of a quantized MODEL, from any tool, as JSON that a fine-tuning run can start from."""
    from onnxq import files
    from onnxq.handout import scales
    from onnxq.intake import load

    files.check_writable(output, *paths(model))
    found = scales(load(model))
    files.write_text(output, json.dumps(found, indent=1) + "\n")
    if not options["quiet"]:
        click.echo(f"{output}: the scales of {len(found['tensors'])} tensors")
