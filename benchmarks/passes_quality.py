"""Every training-free pass on one model at the same MACs: what is left of its decisions, and what it costs.

    python benchmarks/passes_quality.py --model resnet20.onnx --calib cifar10-train.zip --eval cifar10-val.zip

Prints one row per pass and composition at 75 % and 50 % of the MACs (columns as in `id_quality.py`): as published
where authors had a rule, and with the refit. Nothing is chosen on the evaluation data.
"""

from __future__ import annotations

import sys

from id_quality import HEAD, arguments, row

ROWS = {
    "filters": "filters(flops={size})",
    "filters, refitted": "filters(flops={size},reconstruct=asymmetric)",
    "i-SpaSP, published": "ispasp(flops={size})",
    "i-SpaSP, refitted": "ispasp(flops={size},importance=energy,reconstruct=asymmetric)",
    "ID, published": "id(flops={size},reconstruct=none,select=pivots)",
    "ID": "id(flops={size})",
    "PCA, published": "pca(flops={size},reconstruct=none)",
    "PCA": "pca(flops={size})",
    "LRank, published": "lrank(flops={size},reconstruct=none)",
    "LRank": "lrank(flops={size})",
    "CP, data-free": "cp(flops={size},reconstruct=none)",
    "CP": "cp(flops={size})",
    "ID, then PCA": "id(flops={half}),pca(flops={size})",
    "ID, then LRank": "id(flops={half}),lrank(flops={size})",
    "SuRP, then ID": "surp(sparsity=0.3,values=refit),id(flops={size})",
    "auto": "auto(flops={size})",
    "auto by latency": "auto(latency=0.6)",
}
UNSIZED = ("auto by latency",)


def run() -> None:
    """Parse the command line and print the table."""
    parser = arguments(__doc__, ROWS, ROWS, [0.75, 0.5], 1)
    parser.add_argument("--calib-examples", type=int, default=1000)
    given = parser.parse_args()
    given.drop_class = []
    print(f"{HEAD}\n|{'---|' * HEAD.count(' | ')}---|")
    for model in given.model:
        for size in given.sizes:
            for name in given.rows:
                if name in UNSIZED and size != given.sizes[0]:
                    continue
                # The first of two passes goes half of the way.
                recipe = ROWS[name].format(size=size, half=round(size**0.5, 4))
                row(model, name, recipe, given, given.calib_examples)


if __name__ == "__main__":
    sys.exit(run())
