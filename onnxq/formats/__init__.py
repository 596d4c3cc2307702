"""Number formats: their grammar, the table of what runs where, and the codes of each family.

    from onnxq.formats import Format, cell
    wanted = Format.parse("int4/block:32")         # what a recipe's weights, activations and rules say
    wanted.type, wanted.granularity, wanted.block_size, wanted.kind.bits, str(wanted)
    cell(wanted, "weights", "tensorrt@11").reason  # empty where it works

A new type is a row of `grammar.KINDS`, with where it runs in `table.ROWS`; `Recipe` refuses every other cell. In
placement `WeightPoint.format` tells a pass which format a weight is stored in.
"""

from __future__ import annotations

from onnxq.formats.grammar import KINDS, Format, Kind
from onnxq.formats.table import Cell, cell, cells, check_cell

__all__ = ["KINDS", "Cell", "Format", "Kind", "cell", "cells", "check_cell"]
