"""Make tests/data/qat_tensorflow.onnx and qat_tflite.onnx: a network trained with TensorFlow's fake quantization.

    python scripts/export_qat_tensorflow.py [FOLDER]

Needs tensorflow and tf2onnx. The first is tf2onnx's export of the trained function: fake quantization becomes Q/DQ
pairs; its last layer has none. The second went through TFLite's full-integer converter: int8 weights, int32 biases,
zero points on all activations. Beside them, in an .npz, two inputs and what the trained network gives for them.
tensorflow 2.21.0, tf2onnx 1.17.0, seed 0.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).resolve().parent.parent / "tests" / "data"
STEPS, BATCH, RATE = 60, 16, 0.05
SHAPES = {"c1": (3, 3, 3, 16), "c2": (3, 3, 16, 16), "fc": (16, 32), "head": (32, 16)}
RANGES = ((-4.0, 4.0), (0.0, 3.0), (0.0, 1.5))


def make_model(tf: Any) -> Any:  # noqa: ANN401 -- tensorflow is not there where the checks run
    """Two convolutions, a mean and two dense layers; image [N, 8, 8, 3] -> [N, 16]."""

    class Net(tf.Module):  # type: ignore[misc] # as above
        """Fake quantization in front of each product but the last."""

        def __init__(self) -> None:
            super().__init__()
            normal = tf.random.normal
            self.w = {n: tf.Variable(normal(s, stddev=0.4 / s[-2] ** 0.5)) for n, s in SHAPES.items()}
            self.b = {n: tf.Variable(tf.zeros(s[-1])) for n, s in SHAPES.items()}

        def seen(self, x: Any, place: int) -> Any:  # noqa: ANN401 -- as above
            """Activations in 8 bits with a zero point."""
            return tf.quantization.fake_quant_with_min_max_args(x, *RANGES[place])

        def weight(self, name: str) -> Any:  # noqa: ANN401 -- as above
            """Weights in -127 to 127."""
            amax = tf.reduce_max(tf.abs(self.w[name]))
            return tf.quantization.fake_quant_with_min_max_vars(self.w[name], -amax, amax, narrow_range=True)

        def __call__(self, x: Any) -> Any:  # noqa: ANN401 -- as above
            x = tf.nn.relu(tf.nn.conv2d(self.seen(x, 0), self.weight("c1"), 1, "SAME") + self.b["c1"])
            x = tf.nn.relu(tf.nn.conv2d(self.seen(x, 1), self.weight("c2"), 1, "SAME") + self.b["c2"])
            x = tf.reduce_mean(x, [1, 2])
            x = tf.nn.relu(tf.matmul(self.seen(x, 2), self.weight("fc")) + self.b["fc"])
            return tf.matmul(x, self.w["head"]) + self.b["head"]

    return Net()


def main() -> None:
    """Train to tell the mean of noise images, then write both models and two results."""
    import tensorflow as tf
    import tf2onnx

    tf.keras.utils.set_random_seed(0)
    model = make_model(tf)
    variables = [*model.w.values(), *model.b.values()]
    for _ in range(STEPS):
        x = tf.random.normal((BATCH, 8, 8, 3)) * tf.reshape(tf.linspace(0.5, 2.0, BATCH), (-1, 1, 1, 1)) + 0.3
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x)[:, 0] - tf.reduce_mean(x, [1, 2, 3])) ** 2)
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            if gradient is not None:
                variable.assign_sub(RATE * gradient)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    # From a concrete function of constants: variables would leave the ranges of weights to be computed.
    spec = (tf.TensorSpec((None, 8, 8, 3), tf.float32, name="image"),)
    traced = tf.function(lambda image: {"y": model(image)}, input_signature=spec)
    tf2onnx.convert.from_function(traced, spec, opset=13, output_path=str(folder / "qat_tensorflow.onnx"))

    one = tf.TensorSpec((1, 8, 8, 3), tf.float32, name="image")
    fixed = tf.function(lambda image: {"y": model(image)}).get_concrete_function(one)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([fixed], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([tf.random.normal((1, 8, 8, 3)) * 1.5 + 0.3] for _ in range(64))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with tempfile.TemporaryDirectory() as scratch:
        lite = Path(scratch) / "qat.tflite"
        lite.write_bytes(converter.convert())
        tf2onnx.convert.from_tflite(str(lite), opset=13, output_path=str(folder / "qat_tflite.onnx"))
    x = np.asarray(tf.random.normal((2, 8, 8, 3)) * 1.5, np.float32)
    np.savez(folder / "qat_tensorflow.npz", image=x, y=np.asarray(model(x)))


if __name__ == "__main__":
    main()
