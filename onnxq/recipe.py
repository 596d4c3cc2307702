"""Recipe: every choice of a quantization run, as one value. TOML in and out; the flags derive from its fields."""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.calibrators import make_calibrator
from onnxq.errors import RecipeError, known_names
from onnxq.kinds import check_kinds
from onnxq.memory import parse_bytes
from onnxq.modes import MODES, check_cpu, check_interface, check_mode, check_width
from onnxq.naming import Globs, matches
from onnxq.runtime import provider_names
from onnxq.schemes import check_formats, float_for, mode_for, parsed
from onnxq.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WEIGHT_FORMS = ("dq", "qdq")
HIGH_PRECISION = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Name on the command line -> numpy's name."""
IO_TYPES = ("float32", "high-precision", "int8")
WEIGHT_RANGES = ("absmax", "mse")
WEIGHT_METHODS = ("nearest", "gptq", "awq")
EFFORTS = ("fast", "balanced", "best")
FORMATS = ("qdq", "qoperator")


def _option(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:  # noqa: ANN401  a dataclass field
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class Rule:
    """An exception for some nodes. Later rules win over earlier ones.

    Attributes:
        nodes: glob over node names.
        ops: op types; empty for all.
        quantize: False leaves the nodes in float; True quantizes them against the target's advice (tiny layers).
        calibrator: calibrator of the nodes' inputs.
        per_channel: False gives the nodes' weights one scale.
        weights: format of the nodes' weights, as `onnxq.formats` reads it.
        activations: format of the nodes' inputs; float where only the weights are to be narrow.

    Raises:
        RecipeError: the rule has no effect or names an unknown calibrator.
    """

    nodes: str = "*"
    ops: tuple[str, ...] = ()
    quantize: bool | None = None
    calibrator: str | None = None
    per_channel: bool | None = None
    weights: str | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        given: object = self.ops  # a recipe file may hold one text in place of a list
        object.__setattr__(self, "ops", (given,) if isinstance(given, str) else given)
        check_kinds(self)
        object.__setattr__(self, "ops", tuple(self.ops))
        effects = [f.name for f in fields(self) if f.name not in ("nodes", "ops")]
        if all(getattr(self, name) is None for name in effects):
            raise RecipeError(f"the rule for {self} changes nothing", f"Give it one of {', '.join(effects)}.")
        _normalize(self)
        if self.calibrator is not None:
            make_calibrator(self.calibrator)

    def __str__(self) -> str:
        return f"nodes={self.nodes!r}" + (f", ops={list(self.ops)}" if self.ops else "")

    def matches(self, name: str, op_type: str) -> bool:
        """Whether the rule speaks of this node. A name that holds glob characters also matches itself."""
        return (not self.ops or op_type in self.ops) and matches(self.nodes, name)


@dataclass(frozen=True)
class Recipe:
    """All choices of a run.

    Raises:
        RecipeError: a value is unknown or out of its range.
    """

    target: str = _option("tensorrt", "Backend the model is made for.")
    calibrator: str = _option("auto", "How ranges are chosen from what was observed.")
    percentile: float = _option(99.99, "Share of |x| inside the range, in percent (calibrator percentile).")
    weight_range: str = _option("absmax", "How weight ranges are chosen.", WEIGHT_RANGES)
    effort: str = _option(
        "balanced",
        "fast: calibrate only; balanced: also smooth layers' inputs and choose weight codes, where that lowers the "
        "measured error; best: look at more samples and try more.",
        EFFORTS,
    )
    float_share: float | None = _option(
        None,
        "Share of the MACs (0.05 is 5 %) that efforts above fast may leave in float, in layers that err far more than "
        "their share, for ort-cpu with conversions at their borders. What rules leave there counts, unless that alone "
        "is more; 0 for none. [default: the target's]",
    )
    weight_form: str | None = _option(
        None,
        "dq: int8 weights + DequantizeLinear; qdq: float weights + Q + DQ. [default: the target's]",
        WEIGHT_FORMS,
    )
    high_precision: str | None = _option(
        None, "Type of what is not quantized. [default: the target's]", tuple(HIGH_PRECISION)
    )
    format: str = _option("qdq", "Q/DQ pairs, or integer operators of ONNX Runtime (target ort-cpu).", FORMATS)
    reduce_range: bool = _option(False, "Weights in 7 bits, for x64 CPUs without VNNI (target ort-cpu).")
    io_types: str = _option(
        "float32",
        "Type of the model's float inputs and outputs. int8: codes with their scales, uint8 for ort-cpu.",
        IO_TYPES,
    )
    providers: str = _option("cpu", "Where ONNX Runtime runs the float model: cpu, cuda; comma-separated.")
    custom_ops: str = _option("", "Libraries of custom operators for ONNX Runtime (.so, .dll); comma-separated.")
    min_sqnr: float | None = _option(
        None, "Budget: SQNR in dB that every output keeps on held-back data; the fewest MACs go to float for it."
    )
    metric: str = _option("", "Budget: your metric, script.py:function; called as function(feeds, outputs).")
    metric_direction: str | None = _option(None, "Which values of the metric are better.", ("higher", "lower"))
    max_drop: float | None = _option(None, "Budget: by how much the metric may get worse on held-back data.")
    max_drop_relative: bool = _option(False, "Take max-drop as a share of the float model's metric: 0.01 is 1 %.")
    fallback: str = _option(
        "",
        "Budget: formats of weights, comma-separated, that layers keep beside float activations where that is enough, "
        "in place of going to float whole: int4,int8.",
    )
    labels: str = _option("", "Arrays in the data that are no inputs but for the metric; comma-separated.")
    max_samples: int | None = _option(None, "Stop reading the data after so many samples.")
    memory: str = _option("", "What calibration may take, as 4GB: the model is run in parts (with effort fast).")
    skip_bad: bool = _option(False, "Leave out samples that are damaged, do not fit the model, or hold NaN.")
    shard: str = _option("", "Only one part of the samples, as 1/4 ... 4/4: each sample falls to one by its hash.")
    shapes: str = _option("", "Sizes of dynamic inputs, as in x:1x3x224x224,y:[1,4]; a scalar's is s:[].")
    preprocess: str = _option("", "How images become the input: resize=256,crop=224,scale=1/255,mean=[..],std=[..].")
    mode: str = _option(
        "static",
        "What is int8: activations and weights, with static or dynamic scales; weights; nothing (float).",
        MODES,
    )
    weight_bits: int | None = _option(None, "Width of weights, 8, 4 or 3 (mode weight-only). [default: 8]")
    block_size: int | None = _option(None, "Values along K that share a scale (mode weight-only). [default: column]")
    weights: str | None = _option(
        None, "Format of weights, as int8/channel, int4/block:32, nf4/block:64+double; `onnxq formats` lists them."
    )
    activations: str | None = _option(
        None, "Format of activations, as int8/tensor, uint8/tensor+dynamic; float for narrow weights alone."
    )
    weight_method: str = _option(
        "nearest", "How codes are chosen (modes weight-only, dynamic); but nearest, from data.", WEIGHT_METHODS
    )
    outlier_threshold: float | None = _option(
        None, "LLM.int8(): input channels that reach this |x| (6.0 is usual) are multiplied in float, beside int8."
    )
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        if not all(isinstance(rule, Rule) for rule in self.rules):
            raise RecipeError(
                "rules holds what is no onnxq.Rule", "Write each as onnxq.Rule(nodes=..., quantize=False)."
            )
        _normalize(self)
        said = parsed(self.weights), parsed(self.activations, "activations")
        object.__setattr__(self, "mode", mode_for(*said, self.mode))
        object.__setattr__(self, "high_precision", float_for(self))
        object.__setattr__(self, "rules", tuple(self.rules))
        if self.max_samples is not None and self.max_samples < 1:
            raise RecipeError(f"max_samples is {self.max_samples}", "Give 1 or more, or leave it out.")
        if self.float_share is not None and not 0 <= self.float_share < 1:
            raise RecipeError(f"float_share is {self.float_share}", "Give a share of at least 0 and below 1.")
        get_target(self.target)
        make_calibrator(self.calibrator, self.percentile)
        check_budget(self)
        for name in (
            "metric_direction",
            "effort",
            "weight_range",
            "weight_form",
            "high_precision",
            "io_types",
            "mode",
            "format",
            "weight_method",
        ):
            _check_choice(name, getattr(self, name))
        check_width(self)
        check_formats(self, get_target(self.target))
        check_mode(self, get_target(self.target))
        check_interface(self, get_target(self.target))
        check_cpu(self, get_target(self.target))
        provider_names(self.provider_list)
        if self.part is not None and self.effort != "fast":
            raise RecipeError(
                f"a shard cannot be collected with effort {self.effort}, which chooses from all of the data",
                "Add --effort fast; or give all data to one run, with --dask or an executor where that takes long.",
            )

        check_memory(self)

    @property
    def float_type(self) -> str:
        """Numpy's name of the type for what is not quantized: the recipe's, else the target's."""
        return HIGH_PRECISION[self.high_precision or get_target(self.target).high_precision]

    @property
    def provider_list(self) -> tuple[str, ...]:
        """The providers, in order."""
        return tuple(p.strip() for p in self.providers.split(",") if p.strip())

    @property
    def label_list(self) -> tuple[str, ...]:
        """Names of the arrays that go with samples for the metric."""
        return tuple(p.strip() for p in self.labels.split(",") if p.strip())

    @property
    def fallback_rules(self) -> tuple[Rule, ...]:
        """What a budget tries before float, in order, as rules for every node."""
        return tuple(Rule(weights=p.strip(), activations="float") for p in self.fallback.split(",") if p.strip())

    @property
    def budgeted(self) -> bool:
        """Whether a budget is asked for, which needs data to be judged on."""
        return self.min_sqnr is not None or self.max_drop is not None

    @property
    def custom_op_list(self) -> tuple[str, ...]:
        """The custom-operator libraries, in order."""
        return tuple(p.strip() for p in self.custom_ops.split(",") if p.strip())

    @property
    def memory_bytes(self) -> int | None:
        """What calibration may take; None where nothing is said."""
        return parse_bytes(self.memory) if self.memory else None

    @property
    def part(self) -> tuple[int, int] | None:
        """(i, n) of the shard i/n, from 1 to n; None for all samples."""
        first, slash, last = self.shard.partition("/")
        if not self.shard:
            return None
        if slash and first.strip().isdecimal() and last.strip().isdecimal() and 1 <= int(first) <= int(last):
            return int(first), int(last)
        raise RecipeError(f"the shard {self.shard!r} is not i/n", "Give the part and their number, as 1/4 ... 4/4.")

    def rule_value(self, name: str, op_type: str, effect: str) -> Any:  # noqa: ANN401  depends on the effect
        """What the last matching rule says of `effect`, or None."""
        said = (getattr(self.rules[i], effect) for i in reversed(self._speaking(name, op_type)))
        return next((value for value in said if value is not None), None)

    @cached_property
    def _globs(self) -> Globs:
        return Globs.of([rule.nodes for rule in self.rules])

    def _speaking(self, name: str, op_type: str) -> list[int]:
        """Indices of the rules that speak of a node."""
        return [i for i in self._globs.matching(name) if self.rules[i].matches(name, op_type)]

    def check_rules(self, nodes: Iterable[tuple[str, str]]) -> None:
        """Every rule must speak of some node.

        Args:
            nodes: (name, op type) of every node.

        Raises:
            RecipeError: a rule matches none.
        """
        known = list(nodes)
        used = {index for name, op in known for index in self._speaking(name, op)}
        for rule in (rule for index, rule in enumerate(self.rules) if index not in used):
            plain = rule.nodes.strip("*")
            names = {n.lower(): n for n, _ in known}
            near = [names[n] for n in difflib.get_close_matches(plain.lower(), names, 3, 0.4)]
            near += [o for op in rule.ops for o in difflib.get_close_matches(op, {o for _, o in known}, 1)]
            raise RecipeError(
                f"the rule for {rule} matches no node",
                f"Did you mean {', '.join(map(repr, near))}?" if near else "`onnxq plan MODEL -v` lists all names.",
            )

    def to_toml(self) -> str:
        """The recipe as TOML, defaults left out."""
        import tomli_w

        plain = {f.name: v for f in fields(self) if f.name != "rules" and (v := getattr(self, f.name)) != f.default}
        rules = [{f.name: _plain(getattr(r, f.name)) for f in fields(r) if _said(r, f.name)} for r in self.rules]
        return tomli_w.dumps({**plain, **({"rules": rules} if rules else {})})

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file.

        Raises:
            RecipeError: not readable, not TOML, or an unknown key or value.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error.strerror}", "Check the path.") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise RecipeError(f"the recipe {path} cannot be read: {error}", "Is it TOML, in UTF-8?") from error
        return recipe_from_table(table, str(path))


def recipe_from_table(table: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from parsed TOML.

    Raises:
        RecipeError: an unknown key or value; `where` begins the message.
    """
    plain, rules = {k: v for k, v in table.items() if k != "rules"}, table.get("rules", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        raise RecipeError(f"{where}: rules is not a list of tables", "Write each rule under a line [[rules]].")
    try:
        for keys, kind in [(plain, Recipe), *((r, Rule) for r in rules)]:
            _check_keys(keys, kind)
        return Recipe(**plain, rules=tuple(Rule(**r) for r in rules))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.message}", error.hint) from error


def _check_keys(keys: Mapping[str, Any], kind: type[Recipe | Rule]) -> None:
    known = [f.name for f in fields(kind)]
    for key in keys:
        if key not in known:
            raise RecipeError(f"unknown key {key!r}", known_names(key, known))


def _check_choice(name: str, value: str) -> None:
    choices: tuple[str, ...] = next(f.metadata["choices"] for f in fields(Recipe) if f.name == name)
    if value not in choices and value is not None:
        raise RecipeError(f"unknown {name} {value!r}", known_names(value, choices))


def check_budget(recipe: Recipe) -> None:
    """Raise RecipeError where the budget's parts do not go together. A metric may also be given from Python."""
    for name in ("min_sqnr", "max_drop"):
        value = getattr(recipe, name)
        if value is not None and not math.isfinite(value):
            raise RecipeError(f"{name} is {value}", "Give a finite number.")
    if recipe.max_drop is not None and recipe.max_drop < 0:
        raise RecipeError(f"max_drop is {recipe.max_drop}", "Give 0 or more: it is how much worse, not a difference.")
    if recipe.max_drop is not None and recipe.metric_direction is None:
        raise RecipeError(
            "max_drop needs metric_direction", "Say whether higher or lower values are better: it cannot be guessed."
        )
    if recipe.max_drop is None and (recipe.metric or recipe.max_drop_relative or recipe.metric_direction):
        said = "metric" if recipe.metric else "max_drop_relative" if recipe.max_drop_relative else "metric_direction"
        raise RecipeError(f"{said} needs max_drop", "Say by how much the metric may get worse.")
    if recipe.fallback and not recipe.budgeted:
        raise RecipeError("fallback needs a budget", "Give min_sqnr, or metric and max_drop.")


def check_memory(recipe: Recipe) -> None:
    """Raise RecipeError where the amount of memory cannot be read, or something is asked for that runs whole models."""
    if recipe.memory_bytes is None:
        return
    asked = {
        f"effort {recipe.effort}": recipe.mode == "static" and recipe.effort != "fast",
        f"weight_method {recipe.weight_method}": recipe.weight_method != "nearest",
        "outlier_threshold": recipe.outlier_threshold is not None,
        "a budget": recipe.budgeted,
    }
    for said in (name for name, true in asked.items() if true):
        raise RecipeError(
            f"memory cannot be limited with {said}, which runs the whole model again and again",
            "Add --effort fast, or leave out --memory." if said.startswith("effort") else "Leave one of them out.",
        )


def _normalize(holder: Recipe | Rule) -> None:
    for name in ("weights", "activations"):
        if (found := parsed(getattr(holder, name), name)) is not None:
            object.__setattr__(holder, name, str(found))


def _said(rule: Rule, name: str) -> bool:
    return getattr(rule, name) not in (None, ())


def _plain(value: Any) -> Any:  # noqa: ANN401  whatever a rule holds
    return list(value) if isinstance(value, tuple) else value
