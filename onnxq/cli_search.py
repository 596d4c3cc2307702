"""The command line's search for what int8 costs; `onnxq.cli` adds it to the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click  # noqa: TID251  a part of the wall that `cli` is

from onnxq.cli_options import one_file, paths, recipe, talk_options, unjudged_options


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@one_file("--data", required=True, help="Calibration data, as for `quantize`; a quarter is held back and measured on.")
@one_file("--eval-data", help="Data to measure on instead; it does not calibrate.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the result as JSON too.")
@unjudged_options
@talk_options
def sensitivity(model: Path, data: str, eval_data: str | None, output: Path | None, **options: Any) -> None:
    """What each group of layers of MODEL costs in int8: by itself and at the outputs, worst first.

    Of more than 118 groups the quiet ones are measured together with their neighbours, in 120 passes at most.

    Results are kept aside as they come: a run that was stopped goes on where it ended.
    """
    from onnxq import files, search, tables
    from onnxq.progress import shown

    chosen = recipe(options)
    aside = (output or Path(f"{model.stem}.sensitivity.json")).with_suffix(".partial")
    for file in filter(None, (output, aside)):
        files.check_writable(file, *paths(model, data, eval_data, options["recipe_file"]))
    with shown(quiet=options["quiet"]) as monitor:
        found = search.sensitivity(model, data, chosen, monitor, eval_data=eval_data, aside=aside)
        if output is not None:
            files.write_text(output, json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    if not options["quiet"]:
        for line in tables.sensitivity(found, every=options["verbose"]):
            click.echo(line)
