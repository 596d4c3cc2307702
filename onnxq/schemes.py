"""What the formats of a recipe mean together: the mode, which weights go with which activations, refusals.

`weights` and `activations` are the grammar of `onnxq.formats`; `mode`, `weight_bits` and `block_size` are its
shorthands: mode dynamic is activations uint8/tensor+dynamic, weight-only is activations float, weight_bits 4 with
block_size 32 is weights int4/block:32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.errors import RecipeError
from onnxq.formats import Format, check_cell

if TYPE_CHECKING:
    from onnxq.recipe import Recipe, Rule
    from onnxq.targets.target import Target

BESIDE_INTEGERS = (Format("int8", "channel"), Format("int8", "tensor"))
"""Weights that go with integer activations, scales static or dynamic."""

PARTNERS: dict[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "uint8": ("int8",),
    "int16": ("int8",),
    "uint16": ("int8",),
    "fp8e4m3": ("fp8e4m3",),
    "fp8e5m2": ("fp8e5m2", "fp8e4m3"),
}
"""Type of quantized activations -> types of weights, by channel or tensor: backends multiply 8 bits by 8 bits."""


def parsed(text: str | None) -> Format | None:
    """The format of an option, None where nothing is said.

    Raises:
        RecipeError: the text is no format.
    """
    return None if text is None else Format.parse(text)


def mode_for(weights: Format | None, activations: Format | None, mode: str) -> str:
    """The mode that the formats ask for; `mode` where they leave it open.

    Raises:
        RecipeError: formats and mode contradict each other.
    """
    if activations is not None:
        wanted = "weight-only" if activations.type == "float" else "dynamic" if activations.dynamic else "static"
    elif weights is not None and weights not in BESIDE_INTEGERS:
        wanted = "weight-only"  # no kernel multiplies them by int8
    else:
        return mode
    if mode not in ("static", "auto", wanted):  # static is what stands there when nothing was said
        said = f"activations {activations}" if activations is not None else f"weights {weights}"
        raise RecipeError(f"mode {mode} and {said} contradict each other", f"Leave the mode out: it is {wanted}.")
    return wanted


def weight_format(recipe: Recipe, target: Target) -> Format:
    """How weights are stored where no rule says otherwise."""
    if (found := parsed(recipe.weights)) is not None:
        return found
    bits = recipe.weight_bits or 8
    size = recipe.block_size or (target.block_size if bits != 8 else None)
    return Format(f"int{bits}", "channel" if size is None else "block", size)


def node_weights(recipe: Recipe, target: Target, name: str, op_type: str) -> Format:
    """How the weight of a node is stored: the last rule that says so, else the recipe."""
    said = parsed(recipe.rule_value(name, op_type, "weights"))
    return weight_format(recipe, target) if said is None else said


def formats_of(recipe: Recipe, target: Target) -> tuple[Format, ...]:
    """Every format that the recipe and its rules name."""
    said = [recipe.activations, *(text for rule in recipe.rules for text in (rule.weights, rule.activations))]
    return (weight_format(recipe, target), *(f for f in map(parsed, said) if f is not None))


def check_formats(recipe: Recipe, target: Target) -> None:
    """Whether the formats of a recipe and its rules go together, and with the target.

    Raises:
        RecipeError: they do not; the message says why.
    """
    if recipe.weights is not None and (recipe.weight_bits is not None or recipe.block_size is not None):
        raise RecipeError(
            "weights and weight_bits or block_size say the same thing", f"Keep weights = {recipe.weights!r} alone."
        )
    weights, activations = parsed(recipe.weights), parsed(recipe.activations)
    if weights is not None:
        _check_float(weights)
        check_cell(weights, "weights", target.name)
    searched = (weights, *(parsed(rule.weights) for rule in recipe.rules))
    plain = [f for f in searched if f is not None and (f.type not in ("int8", "int4", "int3") or f.modifiers)]
    if plain and recipe.weight_range != "absmax":
        raise RecipeError(
            f"weight_range {recipe.weight_range} has no meaning for weights in {plain[0]}",
            "Leave it out: ranges are searched for int8, int4 and int3 only.",
        )
    if activations is not None:
        check_cell(activations, "activations", target.name)
        if activations.type != "float":
            _check_pair(weights, activations)
    for rule in recipe.rules:
        _check_rule(rule, target)


def _check_rule(rule: Rule, target: Target) -> None:
    for text, role in ((rule.weights, "weights"), (rule.activations, "activations")):
        if text is None:
            continue
        try:
            check_cell(Format.parse(text), role, target.name)
        except RecipeError as error:
            raise RecipeError(f"the rule for {rule}: {error.message}", error.hint) from error


def _check_float(weights: Format) -> None:
    if weights.type == "float":
        raise RecipeError("weights in float leave nothing to quantize", "Leave nodes in float with --exclude.")


def _check_pair(weights: Format | None, activations: Format) -> None:
    takes = PARTNERS[activations.type]
    if weights is not None and (weights.type not in takes or weights.granularity not in ("channel", "tensor")):
        known = ", ".join(f"{kind}/channel, {kind}/tensor" for kind in takes)
        raise RecipeError(
            f"no kernel multiplies activations in {activations} by weights in {weights}",
            f"With {activations.type} activations go weights in {known}; weights in {weights} go with float ones.",
        )
