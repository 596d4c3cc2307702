"""The grammar of number formats: what `--weights`, `--activations` and rules say.

    TYPE [ / GRANULARITY [ : BLOCK ] ] { + MODIFIER }        int8/channel   int4/block:32   nf4/block:64+double

The type says what a stored number is, the granularity which numbers share a scale: the whole tensor, an output
channel, a token (a row of an activation, its scale computed at run time), or a block of so many values along K.
Modifiers: `double`, the scales of blocks are quantized in their turn; `pow2`, scales are powers of two; `dynamic`,
scales are computed at run time. What is left out is the type's first choice; for activations one scale.

    >>> Format.parse("nf4")
    Format(type='nf4', granularity='block', block_size=64, modifiers=frozenset())
    >>> str(Format.parse("int4/block:32+pow2")), Format.parse("uint4/block:64").kind.symmetric
    ('int4/block:32+pow2', False)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxq.errors import RecipeError, known_names

GRANULARITIES = ("tensor", "channel", "token", "block")
MODIFIERS = ("double", "pow2", "dynamic")
SMALLEST_BLOCK = 16
"""ONNX Runtime's MatMulNBits has no smaller one, and the scales would weigh more than the codes."""


@dataclass(frozen=True)
class Kind:
    """What a type is.

    Attributes:
        name: as it is written.
        bits: of one stored code.
        stored: numpy's (ml_dtypes') name of the type of the codes in the model file.
        about: in a line.
        granularities: those it has, the usual one first; empty for a float type, which has no scales.
        block_size: the usual one; 0 where there are no blocks.
        fixed: whether no other block size exists.
        modifiers: those it takes.
        symmetric: no zero point, or a fixed one.
        width: bits of the range that codes use, where that is less than is stored; 0 for all of them.
    """

    name: str
    bits: int
    stored: str
    about: str
    granularities: tuple[str, ...] = ()
    block_size: int = 0
    fixed: bool = False
    modifiers: tuple[str, ...] = ()
    symmetric: bool = True
    width: int = 0


_ANY = ("channel", "tensor", "block")
_NARROW = ("block", "channel")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("float", 32, "float32", "the model's own float type"),
        Kind("fp16", 16, "float16", "IEEE half precision"),
        Kind("bf16", 16, "bfloat16", "bfloat16"),
        Kind("int16", 16, "int16", "symmetric integers, ±32767", ("tensor",)),
        Kind("uint16", 16, "uint16", "integers with a zero point", ("tensor",), symmetric=False),
        Kind("int8", 8, "int8", "symmetric integers, ±127", (*_ANY, "token"), 32, modifiers=("pow2",)),
        Kind("uint8", 8, "uint8", "integers with a zero point", _ANY, 32, modifiers=("dynamic",), symmetric=False),
        Kind("int4", 4, "int4", "symmetric integers, ±7", _NARROW, 32, modifiers=("pow2",)),
        Kind("int3", 4, "int4", "symmetric integers, ±3, stored in 4 bits", _NARROW, 32, width=3),
        Kind("uint4", 4, "uint4", "integers with a zero point", _NARROW, 32, symmetric=False),
        Kind("int2", 2, "int2", "integers -2 to 1, the extreme value at -2", _NARROW, 32),
        Kind("fp8e4m3", 8, "float8_e4m3fn", "float8, 3 bits of mantissa, up to 448", ("channel", "tensor")),
        Kind("fp8e5m2", 8, "float8_e5m2", "float8, 2 bits of mantissa, up to 57344", ("channel", "tensor")),
        Kind("nf4", 4, "uint4", "quantiles of a normal distribution", ("block",), 64, modifiers=("double",)),
        Kind("fp4", 4, "uint4", "bitsandbytes' 4-bit float", ("block",), 64, modifiers=("double",)),
        Kind("fp4e2m1", 4, "uint4", "E2M1, its largest number at max|w|", ("block",), 64, modifiers=("double",)),
        Kind("mxfp4", 4, "uint4", "E2M1 in blocks of 32, scales powers of two", ("block",), 32, fixed=True),
        Kind("mxfp8", 8, "float8_e4m3fn", "E4M3 in blocks of 32, scales powers of two", ("block",), 32, fixed=True),
        Kind("nvfp4", 4, "uint4", "E2M1 in blocks of 16, scales float8", ("block",), 16, fixed=True),
        Kind("log4", 4, "uint4", "a sign and a power of two", _NARROW, 32),
        Kind("ternary", 2, "int2", "-1, 0 and 1", ("channel", "block"), 32),
        Kind("binary", 1, "uint8", "-1 and 1, eight in a byte", ("channel",)),
    )
}
"""The types by name: this table is all that the grammar knows."""


@dataclass(frozen=True)
class Format:
    """A type and what shares a scale. `parse` reads the text, `str` writes it.

    Raises:
        RecipeError: the parts do not go together.
    """

    type: str
    granularity: str = ""
    block_size: int | None = None
    modifiers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.type not in KINDS:
            raise RecipeError(f"unknown type {self.type!r}", known_names(self.type, KINDS))
        kind = self.kind
        if not self.granularity and kind.granularities:
            object.__setattr__(self, "granularity", kind.granularities[0])
        if self.granularity and self.granularity not in GRANULARITIES:
            raise RecipeError(f"unknown granularity {self.granularity!r}", known_names(self.granularity, GRANULARITIES))
        if self.granularity and self.granularity not in kind.granularities:
            has = f"It has: {', '.join(kind.granularities)}." if kind.granularities else "It has no scales."
            raise RecipeError(f"{self.type} has no scale per {self.granularity}", has)
        if self.granularity == "block" and self.block_size is None:
            object.__setattr__(self, "block_size", kind.block_size)
        self._check_block(kind)
        for modifier in sorted(self.modifiers):
            if modifier not in MODIFIERS:
                raise RecipeError(f"unknown modifier {modifier!r}", known_names(modifier, MODIFIERS))
            if modifier not in kind.modifiers:
                takes = ", ".join(kind.modifiers) or "none"
                raise RecipeError(f"{self.type} takes no modifier {modifier!r}", f"It takes: {takes}.")

    def _check_block(self, kind: Kind) -> None:
        size = self.block_size
        if size is None:
            return
        if self.granularity != "block":
            raise RecipeError(f"{self.granularity}:{size}: only blocks have a size", f"Write {self.type}/block:{size}.")
        if kind.fixed and size != kind.block_size:
            raise RecipeError(f"{self.type} has blocks of {kind.block_size}, not of {size}", "Leave the size out.")
        if size < SMALLEST_BLOCK or size & (size - 1):
            raise RecipeError(f"a block of {size} values", f"Give a power of two, {SMALLEST_BLOCK} or more.")

    @property
    def kind(self) -> Kind:
        """The row of KINDS."""
        return KINDS[self.type]

    @property
    def dynamic(self) -> bool:
        """Whether scales are computed at run time."""
        return self.granularity == "token" or "dynamic" in self.modifiers

    def per(self, granularity: str, block_size: int | None = None) -> Format:
        """The same type with another granularity."""
        return replace(self, granularity=granularity, block_size=block_size)

    def __str__(self) -> str:
        size = "" if self.block_size is None else f":{self.block_size}"
        granularity = f"/{self.granularity}{size}" if self.granularity else ""
        return self.type + granularity + "".join(f"+{m}" for m in sorted(self.modifiers))

    @classmethod
    def parse(cls, text: str, role: str = "weights") -> Format:
        """Read a format of weights or, where the role says so, of activations.

        Raises:
            RecipeError: the text is none; the hint has the nearest known word.
        """
        plain, *modifiers = (part.strip() for part in text.strip().lower().split("+"))
        kind, *rest = plain.split("/")
        if len(rest) > 1:
            raise RecipeError(f"{text!r} has two granularities", "Write TYPE/GRANULARITY, as in int8/channel.")
        granularity, colon, size = rest[0].partition(":") if rest else ("", "", "")
        if (rest and not granularity) or (colon and not (size.isascii() and size.isdigit())):
            raise RecipeError(f"{text!r} is no format", "Write TYPE/GRANULARITY[:BLOCK], as in int4/block:32.")
        if role == "activations" and not rest and kind in KINDS and "tensor" in KINDS[kind].granularities:
            granularity = "tensor"
        try:
            return cls(kind, granularity, int(size) if colon else None, frozenset(modifiers))
        except RecipeError as error:
            raise RecipeError(f"{text!r}: {error.message}", error.hint) from error
