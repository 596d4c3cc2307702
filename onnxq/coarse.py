"""Scales of float16 tensors that float16 does not hold.

A Q/DQ pair on a float16 tensor has a scale of that type. Backends may flush to zero what is below its least normal
number, 2^-14, so such a pair is written with 2^-14 (`passes/insert_qdq.py`). A tensor within a then has
a / 2^-14 steps in place of 127, and loses 20 log10 of their ratio in decibels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxq.patterns.ranges import SMALLEST_SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxq.plan import Plan

_NAMED = 3
"""Tensors that are named in the warning."""

_DO = (
    "Quantize the model in float32, which keeps such tensors in it, or leave in float what reads them (--exclude), "
    "model outputs by leaving out --io-types int8"
)


def with_held_scales(plan: Plan) -> Plan:
    """The resolved plan with the scales as float16 tensors get them, and one note on those that are raised for it."""
    points, few = dict(plan.points), []
    for name, point in plan.points.items():
        if point.params is None or point.dtype != "float16" or float(point.params.scale) >= SMALLEST_SCALE:
            continue
        few.append((float(point.params.scale), name))
        scale = np.asarray(SMALLEST_SCALE, point.params.scale.dtype)
        points[name] = replace(point, params=replace(point.params, scale=scale))
    return replace(plan, points=points, notes=(*plan.notes, _note(sorted(few)))) if few else plan


def _note(few: Sequence[tuple[float, str]]) -> str:
    """What the user is told, of (scale that the tensor needs, its name), smallest first."""
    named = [f"{name} (a scale of {scale:.2g} is needed)" for scale, name in few[:_NAMED]]
    others = [f"{len(few) - _NAMED} more"] if len(few) > _NAMED else []
    least = f"{SMALLEST_SCALE:.2g}, the least scale of float16, and lose"
    loss = f"{20 * np.log10(SMALLEST_SCALE / few[0][0]):.0f} dB"
    return f"float16 tensors too small for int8: {', '.join(named + others)}; they get {least} up to {loss}. {_DO}"
