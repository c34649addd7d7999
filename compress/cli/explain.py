"""``onnxprune explain``: how a model was made, out of its own metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxprune.api.explaining import Explanation

_LAYERS = 40


@click.command(
    "explain",
    epilog="""\b
Examples:
  onnxprune explain pruned.onnx
  onnxprune explain pruned.onnx --kept
  onnxprune explain pruned.onnx --in model.onnx
""",
)
@click.argument("model", metavar="P.onnx")
@click.option("--in", "source", metavar="M.onnx", help="the first source: its hash is checked")
@click.option("--kept", "indices", is_flag=True, help="list the source's indices of the channels that were kept")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
def command(model: str, source: str | None, indices: bool, as_json: bool) -> None:
    """Show how P.onnx was made: recipe, hashes, earlier runs; kept channels, zeros, pairs of layers, 8-bit nodes."""
    from onnxprune.api.explaining import explain

    found = explain(model, source)
    if as_json:
        import json

        click.echo(json.dumps(_plain(found), indent=2, ensure_ascii=False))
        return
    for line in _lines(found, indices=indices):
        click.echo(_printable(line))


def _printable(line: str) -> str:
    """Return a line without the control characters that a model from elsewhere may hold."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


def _plain(found: Explanation) -> dict[str, Any]:
    return {
        "model": {"path": found.model.path, "bytes": found.model.bytes, "sha256": found.model.sha256},
        "made": None if found.made is None else dict(found.made),
        "history": list(found.history),
        "kept": [
            {"node": each.node, "kept": len(each.indices), "of": each.of, "indices": list(each.indices)}
            for each in found.kept
        ],
        "sparse": {"params": found.params, "nonzero": found.nonzero, "share": found.sparse_share},
        "layers": [{"node": name, "params": params, "nonzero": nonzero} for name, params, nonzero in found.layers],
        "pairs": [{"node": each.node, "rank": each.rank, "layers": each.layers} for each in found.pairs],
        "quantised": dict(found.quantised),
    }


def _lines(found: Explanation, *, indices: bool) -> list[str]:
    from onnxprune.report.figures import amount, percent

    if found.made is None and not found.history and not found.kept:
        return [f"'{found.model.path}' does not say how it was made: its metadata has nothing of onnxprune's recipes."]
    lines = [f"{found.model.path}: {found.model.bytes:,} bytes, sha256 {found.model.sha256}"]
    if found.made is not None:
        lines += _run(found.made)
    for place, run in enumerate(found.history, 1):
        told = _run(run) if isinstance(run, Mapping) else [str(run)]
        lines += [f"earlier run {place}:", *(f"  {line}" for line in told)]
    lines.append(
        f"zeros: {percent(found.sparse_share)} of {amount(found.params, 'parameter')}, {found.nonzero:,} are not zero"
    )
    for name, params, nonzero in found.layers[:_LAYERS]:
        lines.append(f"  {name}: {percent(1 - nonzero / params)} of {params:,}")
    if len(found.layers) > _LAYERS:
        lines.append(f"  and {amount(len(found.layers) - _LAYERS, 'node')} more; --json lists them")
    if found.kept:
        lines.append("channels kept:")
    for each in found.kept:
        lines.append(f"  {each.node}: {each.text}")
        if indices:
            lines.append(f"    {' '.join(map(str, each.indices))}")
    if found.pairs:
        lines.append("smaller layers in place of one:")
    for part in found.pairs:
        many = "" if part.layers == 2 else f", {part.layers} layers"
        lines.append(f"  {part.node}: rank {'unknown' if part.rank is None else part.rank}{many}")
    if found.quantised:
        lines.append("8-bit: " + ", ".join(f"{count:,} {kind}" for kind, count in found.quantised.items()))
    return lines


def _run(run: Mapping[str, Any]) -> list[str]:
    """Return one run in lines; what the metadata lacks is left out."""
    lines = [f"recipe: {run['recipe']}"] if "recipe" in run else []
    lines += [f"fine-tuned: {run['finetune']}"] if "finetune" in run else []
    if "source_sha256" in run:
        lines.append(f"source: sha256 {run['source_sha256']}")
    if "calib_sha256" in run:
        lines.append(f"calibration: {run.get('calib_examples', '?')} examples, sha256 {run['calib_sha256']}")
    made = [f"seed {run['seed']}"] if "seed" in run else []
    made += [f"onnxprune {run['version']}"] if "version" in run else []
    return [*lines, f"made with: {', '.join(made)}"] if made else lines
