"""Options that commands share: the recipe's flags derive from the fields of Recipe."""

from __future__ import annotations

import dataclasses
import gc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click  # noqa: TID251  this is the wall

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from onnxq.checkpoint import Keeper
    from onnxq.recipe import Recipe


@contextmanager
def importing() -> Iterator[None]:
    """What is imported inside stays, so the collector neither runs meanwhile nor looks at it again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


BUDGET = frozenset(("min_sqnr", "metric", "metric_direction", "max_drop", "max_drop_relative", "fallback"))
"""Fields of the recipe that say how near a quantized model must stay: of commands that judge one."""


READING = frozenset(("providers", "custom_ops", "labels", "max_samples", "skip_bad", "shapes", "preprocess"))
"""Fields of the recipe that say how data is read and a model run: all that a command heeds which quantizes nothing."""


PLACING = frozenset(("target", "mode", "weights", "activations", "weight_bits", "block_size", "high_precision"))
PLACING |= {"io_types", "shapes", "custom_ops", "providers"}
"""Fields that say what is quantized: all that a command heeds which has no data. Providers run custom operators."""


RANGING = PLACING - {"shapes"} | {"calibrator", "percentile"}
"""Fields that say of what ranges are asked, and which: of a command that has statistics and writes no model."""


WRITING = frozenset(("format", "weight_form"))
"""Fields that say how the model is written, of which no statistics depend."""


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags of `READING`, over --recipe."""
    return _recipe_file(_field_flags(command, READING))


def unjudged_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags without those of a budget, for commands that judge nothing. A recipe file may hold one."""
    return _with_rules(command, _fields() - BUDGET)


def observing_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags of `unjudged_options` without `WRITING`, for a command that writes no model. A recipe may hold them."""
    return _with_rules(command, _fields() - BUDGET - WRITING)


def placing_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags of `PLACING`, and those of rules. A recipe file may hold others."""
    return _with_rules(command, PLACING)


def ranging_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags of `RANGING`, and those of rules. A recipe file may hold others."""
    return _with_rules(command, RANGING)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The recipe's flags, one for each of its plain fields, and those of rules, over --recipe."""
    return _with_rules(command, _fields())


def _fields() -> set[str]:
    from onnxq.recipe import Recipe

    return {f.name for f in dataclasses.fields(Recipe)}


def _with_rules(command: Callable[..., None], names: Collection[str]) -> Callable[..., None]:
    command = _field_flags(command, names)
    command = click.option("--exclude", multiple=True, metavar="GLOB", help="Leave nodes of these names in float.")(
        command
    )
    command = click.option("--exclude-op", multiple=True, metavar="OP", help="Leave operators of this type in float.")(
        command
    )
    return _recipe_file(command)


def _recipe_file(command: Callable[..., None]) -> Callable[..., None]:
    return one_file("--recipe", "recipe_file", metavar="TOML", help="Recipe file; flags win over it.")(command)


def _field_flags(command: Callable[..., None], names: Collection[str]) -> Callable[..., None]:
    """A flag for each plain field of the recipe of these names."""
    from onnxq.recipe import Recipe

    for field in reversed([f for f in dataclasses.fields(Recipe) if "help" in f.metadata and f.name in names]):
        text = field.metadata["help"]
        if field.metadata["choices"]:
            text += f" One of: {', '.join(field.metadata['choices'])}."
        command = click.option(
            f"--{field.name.replace('_', '-')}",
            field.name,
            type={"float": float, "float | None": float, "int | None": int, "bool": bool}.get(str(field.type), str),
            is_flag=str(field.type) == "bool",
            default=None,
            help=text if field.default in (None, "", False) else f"{text} [default: {field.default}]",
        )(command)
    return command


def talk_options(command: Callable[..., None]) -> Callable[..., None]:
    """How much is said: -v and -q."""
    return quiet_option(
        click.option("-v", "--verbose", is_flag=True, help="Say more: nodes, and where time went.")(command)
    )


def quiet_option(command: Callable[..., None]) -> Callable[..., None]:
    """-q, of commands that have no more to say."""
    return click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")(command)


def recipe(options: dict[str, Any]) -> Recipe:
    """The recipe that --recipe and the flags make together."""
    from onnxq.recipe import Recipe, Rule

    base = Recipe.from_toml(options["recipe_file"]) if options["recipe_file"] else Recipe()
    rules = tuple(Rule(nodes=glob, quantize=False) for glob in options.get("exclude", ()))
    rules += tuple(Rule(ops=(op,), quantize=False) for op in options.get("exclude_op", ()))
    names = _fields()
    given = {name: value for name, value in options.items() if name in names and value is not None}
    made = dataclasses.replace(base, rules=base.rules + rules, **given)
    if "percentile" in given and "percentile" not in (made.calibrator, *(rule.calibrator for rule in made.rules)):
        raise click.UsageError(f"--percentile is for --calibrator percentile; {made.calibrator} would not heed it")
    return made


def one_file(*names: str, **how: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that names one file or folder; twice is refused, as only the last would count, and so is nothing."""
    return click.option(*names, multiple=True, callback=_only, **how)


def _only(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    if len(values) > 1:
        raise click.BadParameter("it is given twice; put the files into one folder", context, parameter)
    return next(iter(named(context, parameter, values)), None)


def named(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A callback for names of files: an empty one is a shell's variable that was not set, and no choice."""
    if "" in values:
        raise click.BadParameter("it is empty; is a variable of the shell not set?", context, parameter)
    return values


def paths(*given: str | Path | None) -> list[Path]:
    """What was given of files; a text that is none, as random:8, is a path that does not exist."""
    return [Path(item) for item in given if item]


def resume_option(command: Callable[..., None]) -> Callable[..., None]:
    """--resume: go on where a run was stopped."""
    text = "Go on where the same command was stopped: what it had counted lies beside the output."
    return click.option("--resume", is_flag=True, help=text)(command)


@contextmanager
def resumable(output: Path, *, resume: bool) -> Iterator[Keeper]:
    """Keeps a checkpoint beside the output while something is calibrated, and says so when that is stopped."""
    from onnxq.checkpoint import Keeper, checkpoint_of

    keeper = Keeper(checkpoint_of(output), resume)
    try:
        yield keeper
    except (Exception, KeyboardInterrupt):
        if keeper.path.exists():
            click.echo(f"{keeper.path} has what was counted so far: the same command with --resume goes on", err=True)
        raise
    keeper.done()
