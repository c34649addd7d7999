"""``onnxprune finetune``: train a compressed model further, towards the original or towards labels."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.configured import config_option
from onnxprune.cli.learning import data_options, distributed_options, learning_options, lesson_options, log_options
from onnxprune.cli.shared import DATA_HELP, output_kind_option

if TYPE_CHECKING:
    from onnxprune.api.finetuning import Finetuned
    from onnxprune.graph.io import FileFacts


@click.command(
    "finetune",
    epilog="""\b
Examples:
  onnxprune finetune pruned.onnx --teacher model.onnx --data images.zip --out tuned.onnx
  onnxprune finetune pruned.onnx --data train.zip --eval test.zip --loss labels --out tuned.onnx --epochs 20
  onnxprune finetune pruned.onnx --teacher model.onnx --data train.zip --out tuned.onnx --resume tuned.last.pth
  torchrun --nproc-per-node 2 -m onnxprune finetune pruned.onnx --teacher model.onnx --data D --out tuned.onnx
""",
)
@click.argument("model", metavar="PRUNED.onnx")
@click.option("--out", type=click.Path(), help="the ONNX file to write; OUT's .last.pth and .best.pth lie beside it")
@click.option("--eval", "test", metavar="D", help=f"tested on instead of a part of --data; {DATA_HELP}")
@click.option("--preprocess", type=click.Path(), help="how pixels become inputs  [default: what the model says]")
@partial(
    lesson_options,
    teacher="the original, whose outputs are learnt: agreement is the aim",
    loss="distill with --teacher, else labels",
)
@click.option("--trainable", metavar="NAMES", help="initialisers to train: names, globs, re:..., parted by ;")
@click.option("--batchnorm", default="frozen", show_default=True, help="frozen statistics, or train")
@output_kind_option
@config_option
@data_options
@partial(
    learning_options,
    epochs="5", batch_size="64", lr="0.0005; sgd 0.003", optimizer="adam", weight_decay="0", clip="1",
)  # fmt: skip
@click.option("--resume", type=click.Path(), metavar="CKPT", help="go on from the .last.pth of a run that was killed")
@click.option("--evaluate", is_flag=True, help="score PRUNED.onnx on the test data; train nothing")
@log_options
@distributed_options
@click.option("--force", is_flag=True, help="overwrite an existing --out and its checkpoints")
@click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
def command(model: str, **given: Any) -> None:
    """Train PRUNED.onnx further without the code it came from; its zeros stay zeros.

    With --teacher it learns the original's outputs and needs no labels. A tenth of the data picks the best epoch, by
    agreement with the teacher, else by accuracy; where no epoch is better than none, the weights stay as they were.
    Without other options 5 epochs of adam with learning rate 0.0005, gradients clipped to norm 1.
    """
    from onnxprune.models import require_torch

    require_torch("finetune")
    from onnxprune.cli.learning import launch

    if given["out"] is None and not given["evaluate"]:
        raise click.UsageError("Missing option '--out'.")
    launch(_run, model, given)


def _run(model: str, given: dict[str, Any]) -> None:
    from pathlib import Path

    from onnxprune.api.finetuning import Study, finetune, score_files
    from onnxprune.api.options import Options
    from onnxprune.cli.learning import lesson_of, train_options
    from onnxprune.cli.train import hooked, show_scores
    from onnxprune.graph import io
    from onnxprune.models import distributed
    from onnxprune.models.finetune import with_defaults

    training = train_options("", with_defaults(given))
    lesson = lesson_of(given, "labels" if given["teacher"] is None else "distill")
    options = Options(
        seed=given["seed"], drop_classes=given["dropped"], preprocess=given["preprocess"],
        output_kinds=given["output_kinds"], download=given["download"],
    )  # fmt: skip
    if given["evaluate"]:
        study = Study(given["test"], given["val_share"])
        scores = score_files(
            model, given["teacher"], given["data"], device=given["device"], study=study, options=options
        )
        if distributed.rank() == 0:
            show_scores(scores, given["as_json"])
        return
    out, resume = Path(given["out"]), None if given["resume"] is None else Path(given["resume"])
    last, best = (out.with_suffix(f".{name}.pth") for name in ("last", "best"))
    for file in (out, last, best) if resume is None else (out,):
        io.check_output(file, source=model, force=given["force"])
    study = Study(given["test"], given["val_share"], given["trainable"], given["batchnorm"], last, best, resume)
    with hooked(training.epochs, given) as hooks:
        done = finetune(
            model, given["teacher"], given["data"],
            lesson=lesson, training=training, study=study, options=options, hooks=hooks,
        )  # fmt: skip
    if distributed.rank() == 0:
        facts = done.save(out)
        if given["as_json"]:
            click.echo(json.dumps(_document(done, facts), indent=2))
        else:
            _show(done, facts)


def _document(done: Finetuned, facts: FileFacts) -> dict[str, Any]:
    tuned, data = done.tuned, done.data
    return {
        "out": facts.path,
        "bytes": facts.bytes,
        "sha256": facts.sha256,
        "epochs": tuned.trained.epochs,
        "best_epoch": tuned.trained.best_epoch if tuned.better else 0,
        "validation": {"before": tuned.before.known, "after": tuned.after.known},
        "test": {"before": tuned.before_test.known, "after": tuned.after_test.known},
        "examples": {"train": data.train.count, "validation": data.validation.count, "test": data.test.count},
        "masked": tuned.masked,
        "parity_error": tuned.error,
        "seconds": round(tuned.trained.seconds, 3),
        "metadata": dict(done.metadata),
    }


def _show(done: Finetuned, facts: FileFacts) -> None:
    tuned, data = done.tuned, done.data
    for name, count, before, after in (
        ("held-out", data.validation.count, tuned.before, tuned.after),
        ("test", data.test.count, tuned.before_test, tuned.after_test),
    ):
        click.echo(f"{name} ({count:,} examples): {before.words} before, {after.words} after")
    if tuned.better:
        click.echo(f"best: epoch {tuned.trained.best_epoch} of {tuned.trained.epochs}, {tuned.trained.seconds:.0f} s")
    else:
        click.echo("no epoch was better than none: the weights are as they were; try a smaller --lr or more data")
    if tuned.masked:
        click.echo(f"{tuned.masked:,} weights were held at zero")
    click.echo(f"wrote {facts.path} ({facts.bytes:,} bytes)")
