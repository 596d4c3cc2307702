"""Which placement a target uses, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxq.place import place
from onnxq.place_cpu import place_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxq.graph import Graph
    from onnxq.plan import Plan
    from onnxq.recipe import Recipe
    from onnxq.targets.target import Target

    Placement = Callable[[Graph, Target, Recipe], Plan]

PLACEMENTS: dict[str, Placement] = {"tensorrt": place, "ort-cpu": place_cpu}
"""`Target.placement` -> the function that decides."""
