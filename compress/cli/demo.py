"""``onnxprune demo``: the whole story on the embedded digits."""

from __future__ import annotations

import shlex
import time

import click

STORY = (
    (
        "Train LeNet-5 in PyTorch on the embedded digits and export it to ONNX.",
        "train lenet5 --data digits --out model.onnx",
    ),
    (
        "Compress it with surp and id; the model's own metadata says which data to use.",
        "apply surp,id --in model.onnx --out pruned.onnx --report report.md --report report.json",
    ),
    (
        "Ask for half of the FLOPs, and let a gate decide whether the result may ship.",
        "apply id(flops=0.5) --in model.onnx --out half.onnx --min-agreement 0.95 --report half.md",
    ),
)


@click.command("demo")
@click.option("--dir", "folder", default="onnxprune-demo", show_default=True, metavar="D", help="where the files go")
def command(folder: str) -> None:
    """Train, export, compress, compare and report on the embedded digits; every step is a command you can type."""
    from pathlib import Path

    from onnxprune.cli import main
    from onnxprune.errors import OptionError

    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--dir '{folder}' cannot be made: {error.strerror}") from error
    start = time.perf_counter()
    for title, words in STORY:
        files = (".onnx", ".md", ".json")
        placed = [str(target / word) if word.endswith(files) else word for word in words.split()]
        click.echo(f"\n{title}\n$ onnxprune {shlex.join(placed)}\n")
        status = main.main(args=[*placed, "--force"], prog_name="onnxprune", standalone_mode=False)
        if status:
            click.get_current_context().exit(int(status))
    click.echo(
        f"\nDone in {time.perf_counter() - start:.0f} s. Everything is in {target}; read {target / 'report.md'} first."
    )
