"""``onnxprune inspect``: what a model consists of and what of it can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


@click.command(
    "inspect",
    epilog="""\b
Example:
  onnxprune inspect model.onnx --json
""",
)
@click.argument("model", metavar="M.onnx")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
def command(model: str, as_json: bool) -> None:
    """Show layers, parameters, FLOPs (symbolic sizes count as 1) and channel spaces of a model."""
    found = _inspect(model)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
    else:
        from rich.console import Console

        _show(found, Console())


def _inspect(path: str) -> dict[str, Any]:
    from onnxprune.graph import io, spaces
    from onnxprune.graph.cleanup import prepare
    from onnxprune.graph.cost import example_shapes, measure
    from onnxprune.graph.reach import reach
    from onnxprune.graph.shapes import concrete_shapes, true_inputs

    model, facts = io.load(path), io.facts(path)
    prepared = prepare(model)
    cost, analysis = measure(prepared), spaces.analyse(prepared)
    far = reach(analysis, concrete_shapes(prepared, example_shapes(prepared)))

    def value(item: Any) -> dict[str, Any]:
        dims = [size if isinstance(size, int) else str(size.value) for size in item.shape or ()]
        return {"name": item.name, "type": str(item.dtype), "shape": dims}

    return {
        "model": {"path": facts.path, "bytes": facts.bytes, "sha256": facts.sha256},
        "ir_version": model.ir_version,
        "opset": model.opset_imports.get("", None),
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [value(item) for item in true_inputs(model)],
        "outputs": [value(item) for item in model.graph.outputs],
        "metadata": dict(model.metadata_props),
        "cost": {"params": cost.params, "nonzero": cost.nonzero, "macs": cost.macs, "bytes": cost.bytes},
        "layers": [
            {"node": name, "op": n.op_type, "params": n.params, "nonzero": n.nonzero, "macs": n.macs}
            for name, n in cost.nodes.items()
        ],
        "unknown": dict(cost.unknown),
        "prunable_share": far.prunable_share,
        "lowest_macs_ratio": far.lowest,
        "refused": dict(analysis.tracer.refused),
        "spaces": [
            {
                "name": space.name,
                "width": space.width,
                "producers": [str(p.node.name) for p in space.producers],
                "consumers": [str(c.node.name) for c in space.consumers],
                "macs": far.governed.get(space.name),
                "frozen": space.frozen,
            }
            for space in analysis.spaces
        ],
    }


def _show(found: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    cost, model = found["cost"], found["model"]
    console.print(
        f"{model['path']}: {model['bytes']:,} bytes, opset {found['opset']}, IR {found['ir_version']}",
        markup=False,
    )
    for kind in ("inputs", "outputs"):
        for item in found[kind]:
            shape = ", ".join(str(size) for size in item["shape"])
            console.print(f"{kind[:-1]} {item['name']}: {item['type']} [{shape}]", markup=False)
    console.print(
        f"{cost['params']:,} parameters, {cost['nonzero']:,} nonzero, {2 * cost['macs']:,} FLOPs (2 x MACs)\n"
    )
    layers = Table(box=None, pad_edge=False)
    for column in ("layer", "operator", "parameters", "nonzero", "MACs"):
        layers.add_column(column, justify="left" if column in ("layer", "operator") else "right", overflow="fold")
    for row in found["layers"]:
        macs = "unknown" if row["macs"] is None else f"{row['macs']:,}"
        layers.add_row(row["node"], row["op"], f"{row['params']:,}", f"{row['nonzero']:,}", macs)
    console.print(layers)
    console.print()
    spaces = Table(box=None, pad_edge=False)
    for column in ("channel space", "width", "producers", "consumers", "can be cut"):
        spaces.add_column(
            column, justify="left" if column in ("channel space", "can be cut") else "right", overflow="fold"
        )
    for row in found["spaces"]:
        verdict = "yes" if row["frozen"] is None else f"no: {row['frozen']}"
        spaces.add_row(row["name"], str(row["width"]), str(len(row["producers"])), str(len(row["consumers"])), verdict)
    console.print(spaces)
    share, lowest = found["prunable_share"], found["lowest_macs_ratio"]
    console.print(
        f"\n{100 * share:.1f} % of the MACs are in nodes that can be cut, down to {100 * lowest:.1f} % of all"
    )
    for node, reason in found["refused"].items():
        console.print(f"left alone: {node}: {reason}", style="dim", markup=False)
    for node, reason in found["unknown"].items():
        console.print(f"MACs of {node} are not counted: {reason}", markup=False)
