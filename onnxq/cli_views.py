"""Commands that look at models and change none: compare, show, check."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click  # noqa: TID251  this is the wall

import onnxq
from onnxq.cli_options import one_file, paths, reading_options, talk_options
from onnxq.cli_options import recipe as chosen
from onnxq.errors import AccuracyError, DataError, ProviderError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxq.checks import Report
    from onnxq.comparison import Comparison
    from onnxq.proof import Proof

EXIT_REFUSED = 3


@click.command()
@click.argument("reference", metavar="FLOAT", type=click.Path(path_type=Path))
@click.argument("quantized", type=click.Path(path_type=Path))
@one_file("--data", required=True, help="Data to compare on, as for `quantize`; better not the calibration data.")
@click.option("--layers", is_flag=True, help="Compare every tensor both models have, not only the outputs.")
@click.option(
    "--fail-below", type=float, metavar="DB", help="Exit status 1 when the SQNR of an output is lower, or it is gone."
)
@click.option("--report", "page", type=click.Path(path_type=Path), help="Write a page (.html) that shows all of it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@reading_options
@talk_options
def compare(
    reference: Path,
    quantized: Path,
    data: str,
    layers: bool,
    fail_below: float | None,
    page: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Errors of the QUANTIZED model, from whatever tool, against the FLOAT one, worst first."""
    from onnxq import api, files, report, reporting, tables
    from onnxq.progress import shown

    if page is not None:
        files.check_writable(page, *paths(reference, quantized, data, options["recipe_file"]))
    if fail_below is not None and not math.isfinite(fail_below):
        raise click.UsageError(f"--fail-below {fail_below} is no number of dB")
    recipe = chosen(options)
    with shown(quiet=options["quiet"] or as_json) as monitor:
        if page is None:
            found = api.compare(reference, quantized, data, recipe, layers=layers, monitor=monitor)
        else:
            found = reporting.compared(reference, quantized, data, recipe, monitor)
            files.write_text(page, reporting.comparison_page(reference, quantized, found, data, onnxq.__version__))
    if not layers:
        found = dataclasses.replace(found, errors=found.outputs)
    if as_json:
        click.echo(report.comparison_json(found), nl=False)
    elif not options["quiet"]:
        for line in tables.comparison(found, every=options["verbose"]):
            click.echo(line)
        if page is not None:
            click.echo(f"wrote {page}")
    if fail_below is not None:
        _refuse_below(found, fail_below, quantized)


def _refuse_below(found: Comparison, least: float, quantized: Path) -> None:
    """Nothing where every output of the float model has the SQNR.

    Raises:
        AccuracyError: one has less, or is not in the quantized model.
    """
    if low := found.below(least):
        raise AccuracyError(
            f"{len(low)} of {len(found.outputs)} outputs are below {least:g} dB: "
            + ", ".join(f"{e.tensor!r} {e.sqnr_db:.2f} dB" for e in low[:5]),
            "`onnxq compare --layers` shows where the error arises; `onnxq quantize --min-sqnr` keeps a bound.",
        )
    if found.lost:
        others = f"{', '.join(map(repr, found.gained[:5]))} instead" if found.gained else "no others"
        raise AccuracyError(
            f"outputs that the quantized model has not cannot reach {least:g} dB: "
            + ", ".join(map(repr, found.lost[:5])),
            f"Is it the same model? Outputs go by their names, and {quantized} has {others}.",
        )


@click.command()
@click.option("--target", default=None, help="Only this one.")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/formats.md.")
@click.option("-v", "--verbose", is_flag=True, help="Say more: why each target refuses what it does not take.")
def formats(target: str | None, markdown: bool, verbose: bool) -> None:
    """List the number formats: what --weights and --activations take, where they run, and what they weigh."""
    from onnxq import tables
    from onnxq.formats import listing

    targets = listing.chosen(target)
    if markdown:
        click.echo(listing.markdown(targets), nl=False)
        return
    click.echo(tables.table(listing.header(targets), listing.rows(targets)))
    click.echo(listing.LEGEND)
    if verbose:
        click.echo(tables.table(listing.REFUSED, listing.refusals(targets)))


@click.command()
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


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", default="tensorrt", show_default=True, help="tensorrt@8, @10, @11, these +dla; ort-cpu, ort-cuda."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {summary, findings}; for ort-cpu {summary, nodes}.")
@one_file("--data", help="ort-*: what MODEL is run on, its first sample. [default: random:1]")
@click.option("--shapes", default="", help="Sizes of inputs that MODEL leaves open, as in x:1x3x224x224,y:[1,4].")
@click.option("--preprocess", default="", help="ort-*: how images of --data become the input, as for `quantize`.")
@click.option("--measure", is_flag=True, help="ort-*: measure latency against --float too.")
@click.option("--float", "reference", type=click.Path(path_type=Path), help="The float model, for --measure.")
@talk_options
def check(model: Path, target: str, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Will the target take MODEL, and run it in int8? Exit status 3 when it will not take it.

    MODEL may come from any tool. Needs no GPU and no TensorRT: docs/check.md lists the rules. For ort-cpu it is
    optimized and run by ONNX Runtime; status 3 says that something quantized runs in float all the same. For ort-cuda
    the rules come first, and the run after them where ONNX Runtime starts on a GPU.
    """
    from onnxq import api
    from onnxq.checks.versions import VERSIONS
    from onnxq.errors import RecipeError, known_names
    from onnxq.proving import PROVIDER_OF

    if options["measure"] and target not in PROVIDER_OF:
        raise click.UsageError(f"--measure is for {' and '.join(PROVIDER_OF)}: scripts/build_engine.py times an engine")
    if options["measure"] != (options["reference"] is not None):
        wanted = "the float model: --float FILE" if options["measure"] else "--measure, or leave out --float"
        raise click.UsageError(f"{'--measure' if options['measure'] else '--float'} wants {wanted}")
    if target not in (*VERSIONS, *PROVIDER_OF):
        raise RecipeError(f"cannot check for target {target!r}", known_names(target, (*VERSIONS, *PROVIDER_OF)))
    if target not in PROVIDER_OF and (options["data"] or options["preprocess"]):
        raise click.UsageError(
            f"--data and --preprocess are for {' and '.join(PROVIDER_OF)}: for {target} nothing runs"
        )
    report = None if target == "ort-cpu" else api.check(model, target, options["shapes"])
    found, why = (None, None) if target not in PROVIDER_OF else _proof(model, target, **options)
    if as_json:
        said = {} if report is None else report.to_dict()
        proved = {} if found is None else found.to_dict()
        click.echo(
            json.dumps(said | ({"proof": proved or None} if said and target in PROVIDER_OF else proved), indent=1)
        )
    legal = (report is None or report.legal) and (found is None or found.legal)
    if not as_json and (not quiet or not legal):
        for line in _findings(report, verbose=verbose):
            click.echo(line)
        for line in _proved(found, why, verbose=verbose):
            click.echo(line)
    if not legal:
        sys.exit(EXIT_REFUSED)


def _findings(report: Report | None, *, verbose: bool) -> Iterator[str]:
    """What the rules say."""
    from onnxq import tables
    from onnxq.checks import text

    if report is None:
        return
    if found := text.rows(report, every=verbose):
        yield tables.table(text.HEADER, list(found))
    yield from (f"{rule}: {hint}" for rule, hint in text.advice(report))
    yield from text.summary(report, every=verbose)


def _proved(found: Proof | None, why: str | None, *, verbose: bool) -> Iterator[str]:
    """What runs, or why that is not known."""
    from onnxq import proof, tables

    if why is not None:
        yield f"not run: {why}"
    if found is not None:
        yield tables.table(proof.HEADER, proof.rows(found, every=verbose))
        yield from proof.lines(found)


def _proof(model: Path, target: str, **options: Any) -> tuple[Proof | None, str | None]:
    """What ONNX Runtime runs, or why its provider is not there; that is an error when a measurement is asked for."""
    from onnxq.proving import prove

    reference = options["reference"] if options["measure"] else None
    given = {name: options[name] for name in ("shapes", "preprocess")}
    try:
        return prove(model, target, options["data"] or "random:1", **given, reference=reference), None
    except (ProviderError, DataError) as error:  # without a GPU, or shapes for a run, the rules say enough
        if options["measure"] or target == "ort-cpu":
            raise
        return None, error.message
