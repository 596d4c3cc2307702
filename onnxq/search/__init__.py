"""Sensitivity and budgets: what each group of layers costs in int8, and how many must go back to float.

`sensitivity` measures every group; `within_budget` quantizes under `min_sqnr` or `metric` and `max_drop`. What they
find are the plain values of `onnxq.outcome`.
"""

from __future__ import annotations

from onnxq.placement.groups import Group, groups
from onnxq.search.flow import Evaluation, sensitivity, within_budget
from onnxq.search.groups import without

__all__ = ["Evaluation", "Group", "groups", "sensitivity", "within_budget", "without"]
