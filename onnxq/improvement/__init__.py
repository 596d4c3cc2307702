"""What makes a model better in int8 at the price of some computing: chosen on some samples, judged on others.

`picking` picks the samples, `factors` smooths the inputs of layers (`smoothing`, `sampling`), `weighing` says which
ranges disregard the activation behind a tensor, `gridding` gives
channels ranges of their own, `widening` widens ranges, `shifting` gives one-sided tensors a zero
point, `rounding` rounds weights with regard to what they are multiplied with, `sparing` leaves a few layers in float,
`judging` says what of all that is kept, and `written` how near the model is that comes of it.
"""

from onnxq.improvement.factors import left_out, smoothing_axes, smoothing_factors
from onnxq.improvement.gridding import Grids, Wanted, channel_grids, gaining
from onnxq.improvement.judging import Judge, how_near
from onnxq.improvement.picking import LEVELS, Inspected, Picked, pick
from onnxq.improvement.rounding import rounded_again, rounded_weights
from onnxq.improvement.shifting import zero_points
from onnxq.improvement.sparing import by_themselves, kept, pays, spared
from onnxq.improvement.weighing import summed, weighed_alone
from onnxq.improvement.widening import widening

__all__ = [
    "LEVELS",
    "Grids",
    "Inspected",
    "Judge",
    "Picked",
    "Wanted",
    "by_themselves",
    "channel_grids",
    "gaining",
    "how_near",
    "kept",
    "left_out",
    "pays",
    "pick",
    "rounded_again",
    "rounded_weights",
    "smoothing_axes",
    "smoothing_factors",
    "spared",
    "summed",
    "weighed_alone",
    "widening",
    "zero_points",
]
