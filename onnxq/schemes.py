"""What the formats of a recipe mean together: the mode, which weights go with which activations, refusals.

`weights` and `activations` are the grammar of `onnxq.formats`; `mode`, `weight_bits` and `block_size` are its
shorthands: mode dynamic is activations uint8/tensor+dynamic, weight-only is activations float, weight_bits 4 with
block_size 32 is weights int4/block:32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq.errors import RecipeError
from onnxq.formats import Format, check_cell
from onnxq.numerics import INT8, UINT8, QType
from onnxq.targets import get_target

if TYPE_CHECKING:
    from onnxq.recipe import Recipe, Rule
    from onnxq.targets.target import Target

BESIDE_INTEGERS = (Format("int8", "channel"), Format("int8", "tensor"))
"""Weights that go with integer activations, scales static or dynamic."""

HALVES = ("fp16", "bf16")
SEARCHED = ("int8", "int4", "int3")
"""Types of weights whose ranges can be chosen otherwise than by absmax without data."""

FLOAT8 = ("fp8e4m3", "fp8e5m2")

GRIDS: dict[str, QType] = {
    "int8": INT8,
    "uint8": UINT8,
    "int16": QType("int16", narrow=True),
    "uint16": QType("uint16", symmetric=False),
    "fp8e4m3": QType("float8_e4m3fn"),
    "fp8e5m2": QType("float8_e5m2"),
}
"""Type of activations with static scales -> their grid."""

PARTNERS: dict[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "uint8": ("int8",),
    "int16": ("int8",),
    "uint16": ("int8",),
    "fp8e4m3": ("fp8e4m3",),
    "fp8e5m2": ("fp8e5m2", "fp8e4m3"),
}
"""Type of quantized activations -> types of weights, by channel or tensor: backends multiply 8 bits by 8 bits."""


def parsed(text: str | None, role: str = "weights") -> Format | None:
    """The format of an option for weights or activations, None where nothing is said.

    Raises:
        RecipeError: the text is no format.
    """
    return None if text is None else Format.parse(text, role)


def mode_for(weights: Format | None, activations: Format | None, mode: str) -> str:
    """The mode that the formats ask for; `mode` where they leave it open.

    Raises:
        RecipeError: formats and mode contradict each other.
    """
    if {f.type for f in (weights, activations) if f is not None} & set(HALVES):
        wanted = "float"
    elif activations is not None:
        wanted = "weight-only" if activations.type == "float" else "dynamic" if activations.dynamic else "static"
    elif weights is not None and weights not in BESIDE_INTEGERS:
        wanted = "weight-only"  # no kernel multiplies them by int8
    else:
        return mode
    if mode not in ("static", "auto", wanted):  # static is what stands there when nothing was said
        said = f"activations {activations}" if activations is not None else f"weights {weights}"
        raise RecipeError(f"mode {mode} and {said} contradict each other", f"Leave the mode out: it is {wanted}.")
    return wanted


def float_for(recipe: Recipe) -> str | None:
    """The recipe's high_precision, or the half type that its weights and activations name.

    Raises:
        RecipeError: they name different types.
    """
    said = {f.type for f in (parsed(recipe.weights), parsed(recipe.activations, "activations")) if f is not None}
    if not said & set(HALVES):
        return recipe.high_precision
    said |= {recipe.high_precision} if recipe.high_precision is not None else set()
    if len(said) > 1:
        raise RecipeError(
            f"weights, activations and high_precision name different types: {', '.join(sorted(said))}",
            f"A model goes to one type as a whole: --weights {min(said & set(HALVES))} alone.",
        )
    return said.pop()


def backend(recipe: Recipe) -> Target:
    """The recipe's target, with the grids that its activations ask for.

    In types that ONNX Runtime's CPU provider has no integer kernels for, pairs stand where TensorRT wants them.
    """
    target, activations = get_target(recipe.target), parsed(recipe.activations, "activations")
    if activations is None or activations.dynamic or activations.type not in GRIDS:
        return target
    weights = parsed(recipe.weights)
    grid = GRIDS[activations.type]
    weight = GRIDS[PARTNERS[activations.type][0] if weights is None else weights.type]
    if grid.dtype == target.activation.dtype:
        return target
    return replace(
        target,
        activation=grid,
        weight=weight if weight.floating else target.weight,
        placement="tensorrt",
        both_ends=frozenset(),
    )


def weight_only(rule: Rule) -> bool:
    """Whether a rule asks for narrow weights beside float inputs."""
    weights, activations = parsed(rule.weights), parsed(rule.activations, "activations")
    if activations is not None:
        return activations.type == "float"
    return weights is not None and weights not in BESIDE_INTEGERS


def weight_format(recipe: Recipe, target: Target) -> Format:
    """How weights are stored where no rule says otherwise."""
    if (found := parsed(recipe.weights)) is not None:
        return found
    bits = recipe.weight_bits or 8
    size = recipe.block_size or (target.block_size if bits != 8 else None)
    return Format(f"int{bits}", "channel" if size is None else "block", size)


def held_in(recipe: Recipe, mode: str) -> str:
    """The type that a model is known by: that of its weights where no rule says otherwise, of mode float that of all.

    `mode` is the recipe's, or what mode auto stands for in this model.
    """
    target, activations = get_target(recipe.target), parsed(recipe.activations, "activations")
    if mode == "float":
        return recipe.high_precision or target.high_precision
    if recipe.mode == "auto" and mode != "weight-only":
        return "int8"  # bits and blocks are for mode weight-only
    if recipe.weights is None and activations is not None and activations.type in PARTNERS:
        return PARTNERS[activations.type][0]
    return weight_format(recipe, target).type


def node_weights(recipe: Recipe, target: Target, name: str, op_type: str) -> Format:
    """How the weight of a node is stored: the last rule that says so, else the recipe."""
    said = parsed(recipe.rule_value(name, op_type, "weights"))
    return weight_format(recipe, target) if said is None else said


def formats_of(recipe: Recipe, target: Target) -> tuple[Format, ...]:
    """Every format that the recipe and its rules name."""
    said = [parsed(recipe.activations, "activations")]
    rules = (*recipe.rules, *recipe.fallback_rules)
    said += [f for r in rules for f in (parsed(r.weights), parsed(r.activations, "activations"))]
    return (weight_format(recipe, target), *(f for f in said if f is not None))


def check_formats(recipe: Recipe, target: Target) -> None:
    """Whether the formats of a recipe and its rules go together, and with the target.

    Raises:
        RecipeError: they do not; the message says why.
    """
    if recipe.weights is not None and (recipe.weight_bits is not None or recipe.block_size is not None):
        raise RecipeError(
            "weights and weight_bits or block_size say the same thing", f"Keep weights = {recipe.weights!r} alone."
        )
    weights, activations = parsed(recipe.weights), parsed(recipe.activations, "activations")
    if weights is not None:
        _check_float(weights)
        check_cell(weights, "weights", target.name)
    searched = (weights, *(parsed(rule.weights) for rule in recipe.rules))
    plain = [f for f in searched if f is not None and (f.type not in SEARCHED or f.modifiers)]
    if plain and recipe.weight_range != "absmax":
        raise RecipeError(
            f"weight_range {recipe.weight_range} has no meaning for weights in {plain[0]}",
            "Leave it out: ranges are searched for int8, int4 and int3 only.",
        )
    _check_method(recipe)
    if activations is not None:
        check_cell(activations, "activations", target.name)
        if activations.type not in ("float", *HALVES):
            _check_pair(weights, activations)
            _check_fine(recipe, activations)
    for rule in recipe.rules:
        _check_rule(rule, target)
        _check_mode_of_rule(rule, recipe.mode)
        _check_mixture(rule, activations)
    for rule in recipe.fallback_rules:
        try:
            _check_rule(rule, target)
            _check_mode_of_rule(rule, recipe.mode)
        except RecipeError as error:
            raise RecipeError(error.message.replace(f"the rule for {rule}", "fallback", 1), error.hint) from error


def _check_method(recipe: Recipe) -> None:
    if recipe.weight_method == "nearest":
        return
    for said, other in (("reduce_range", recipe.reduce_range), ("outlier_threshold", recipe.outlier_threshold)):
        if other:
            raise RecipeError(
                f"weight_method {recipe.weight_method} does not go with {said}", "Leave one of the two out."
            )


def _check_rule(rule: Rule, target: Target) -> None:
    for text, role in ((rule.weights, "weights"), (rule.activations, "activations")):
        if text is None:
            continue
        try:
            check_cell(Format.parse(text, role), role, target.name)
        except RecipeError as error:
            raise RecipeError(f"the rule for {rule}: {error.message}", error.hint) from error


def _check_fine(recipe: Recipe, activations: Format) -> None:
    """What is there for 8-bit integers only."""
    if activations.type in ("int8", "uint8"):
        return
    if recipe.reduce_range:
        raise RecipeError(
            f"reduce_range is about kernels of 8-bit integers, and activations in {activations} run in none",
            "Leave it out.",
        )
    for name, value, plain in (
        ("calibrator", recipe.calibrator, ("auto", "minmax", "percentile")),
        ("weight_range", recipe.weight_range, ("absmax",) if activations.type in FLOAT8 else ("absmax", "mse")),
        ("format", recipe.format, ("qdq",)),
    ):
        if value not in plain:
            raise RecipeError(
                f"{name} {value} is made for integers of 8 bits, not for activations in {activations}",
                f"It can be {' or '.join(plain)}.",
            )


def _check_mode_of_rule(rule: Rule, mode: str) -> None:
    """Nothing that a rule says of formats may be passed over in silence."""
    weights, activations = parsed(rule.weights), parsed(rule.activations)
    if weights is not None and weights.type in HALVES:
        raise RecipeError(f"the rule for {rule}: {weights} is for whole models", "Say it without a rule.")
    mixed = activations is not None or (weights is not None and weights not in BESIDE_INTEGERS)
    if mode in ("dynamic", "float") and mixed:
        raise RecipeError(
            f"the rule for {rule} asks for formats that mode {mode} cannot mix in",
            "Rules mix formats in the modes static and weight-only; here they can leave nodes in float.",
        )
    if mode == "weight-only" and activations is not None and activations.type != "float":
        raise RecipeError(
            f"the rule for {rule} asks for activations in {activations}, and the recipe has float ones",
            "Quantize activations in the recipe, and say activations = 'float' or narrow weights in rules.",
        )


def _check_mixture(rule: Rule, activations: Format | None) -> None:
    said = parsed(rule.activations, "activations")
    if said is None or said.type == "float":
        return
    if (said.type in FLOAT8) != (activations is not None and activations.type in FLOAT8):
        raise RecipeError(
            f"the rule for {rule}: activations in {said} beside {activations or 'int8'} ones",
            "No backend takes float8 and integers in one model. Use one for all, or leave these nodes in float.",
        )
    if said.dynamic or said.type in HALVES:
        raise RecipeError(f"the rule for {rule}: {said} is for whole models", "Say it without a rule.")


def _check_float(weights: Format) -> None:
    if weights.type == "float":
        raise RecipeError("weights in float leave nothing to quantize", "Leave nodes in float with --exclude.")


def _check_pair(weights: Format | None, activations: Format) -> None:
    takes = PARTNERS[activations.type]
    plain = weights is None or (weights.granularity in ("channel", "tensor") and not weights.modifiers)
    if weights is not None and (weights.type not in takes or not plain):
        known = ", ".join(f"{kind}/channel, {kind}/tensor" for kind in takes)
        raise RecipeError(
            f"no kernel multiplies activations in {activations} by weights in {weights}",
            f"With {activations.type} activations go weights in {known}; weights in {weights} go with float ones.",
        )
