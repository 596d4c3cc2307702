"""What int8 operands of the attention products cost in accuracy: the figures of docs/placement.md.

    python scripts/attention_cost.py [MODEL ...]      vit_b16, bert_base, minilm by default

Models, data and SQNR are those of compare_placement.py; the calibrator is auto. Every model is quantized five times:
with both products in float, both in int8, each of them alone, and both with the softmax's range as it was observed.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from compare_placement import (
    NAMES,
    OUT,
    Judge,
    batches,
    calibration,
    fixed,
)

from onnxq import api
from onnxq.patterns.products import SOFTMAX
from onnxq.recipe import Recipe, Rule

INSIST = Rule(ops=("MatMul",), quantize=True)


def products(ready: api.Prepared) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Rules that exclude every Q K^T, and rules that exclude every P V."""
    second = {node for p in ready.plan.points.values() if p.chosen == SOFTMAX for node, _ in p.uses}
    both = [d.node for d in ready.plan.decisions if d.reason.startswith("two int8 activations")]
    excluded = [Rule(nodes=name, quantize=False) for name in both]
    return tuple(r for r in excluded if r.nodes not in second), tuple(r for r in excluded if r.nodes in second)


def row(name: str) -> str:
    """One line of the table: the model and the SQNR of the five, in dB."""
    path, judge, feeds = str(fixed(name)), Judge(name), list(batches(name, calibration(name)))
    first, second = products(api.prepared(path, Recipe(high_precision="fp32", rules=(INSIST,))))
    cells = []
    for rules, seen in (((*first, *second), False), ((), False), (second, False), (first, False), ((), True)):
        ready = api.prepared(path, Recipe(high_precision="fp32", rules=(INSIST, *rules)))
        if seen:
            points = {n: replace(p, range=None, chosen=None) for n, p in ready.plan.points.items()}
            ready = replace(ready, plan=replace(ready.plan, points=points))
        out = OUT / f"{name}.attention.onnx"
        api.export(api.lowered(ready, api.observe(ready, feeds))[0], out)
        cells.append(f"{judge.sqnr(out):.1f}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1:] or ["vit_b16", "bert_base", "minilm"]
    if unknown := set(wanted) - set(NAMES):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    OUT.mkdir(parents=True, exist_ok=True)
    print("| model | neither | both | Q Kᵀ alone | P V alone | both, P as observed |\n|---|---|---|---|---|---|")
    for name in wanted:
        print(row(name))


if __name__ == "__main__":
    main()
