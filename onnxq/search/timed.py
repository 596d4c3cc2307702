"""How long the choices of a Pareto list take in ONNX Runtime, each in turns with the float model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxq import proof
from onnxq.errors import RecipeError
from onnxq.interface import coded, ports
from onnxq.proving import PROVIDER_OF
from onnxq.runtime import try_provider
from onnxq.scratch import Scratch

if TYPE_CHECKING:
    from onnxq.graph import Graph
    from onnxq.outcome import Budget
    from onnxq.recipe import Recipe
    from onnxq.search.budget import Search


def check_timed(recipe: Recipe) -> None:
    """Nothing where the recipe's models can be timed here.

    Raises:
        RecipeError: the target is none of ONNX Runtime's.
        ProviderError: its provider does not start here.
    """
    if recipe.target not in PROVIDER_OF:
        raise RecipeError(
            f"{recipe.target} cannot be timed here", f"Targets of ONNX Runtime: {', '.join(sorted(PROVIDER_OF))}."
        )
    try_provider(PROVIDER_OF[recipe.target])


def timed(found: Budget, search: Search, floating: Graph) -> Budget:
    """The budget with the latency of each choice on its Pareto list, in the form that is shipped.

    Args:
        found: what the search has come to.
        search: it made the choices, and has the samples; the first one that judges is run.
        floating: the float model.

    Raises:
        ModelError: ONNX Runtime cannot load a model.
        DataError: it fails on the sample.
    """
    recipe, feed = search.trials.ready.recipe, search.judging.feeds[0]
    search.monitor.stage("Timing the Pareto list", len(found.pareto))
    times = {}
    with Scratch() as folder:
        reference = folder / "float.onnx"
        floating.save(reference, check=False)
        for tried, graph in search.shipped(found.pareto):
            graph.save(folder / "quantized.onnx", check=False)
            times[tried] = proof.measure(
                reference,
                folder / "quantized.onnx",
                coded(feed, ports(graph)),
                provider=PROVIDER_OF[recipe.target],
                floats=feed,
                custom_ops=recipe.custom_op_list,
            )
            search.monitor.advance()
    return replace(found, tried=tuple(replace(t, latency=times.get(t)) for t in found.tried))
