"""``onnxprune iterate``: prune and train in rounds."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.configured import config_option
from onnxprune.cli.learning import data_options, distributed_options, learning_options, lesson_options, log_options
from onnxprune.cli.shared import DATA_HELP
from onnxprune.errors import OptionError

if TYPE_CHECKING:
    from onnxprune.models.iterative.options import IterateOptions
    from onnxprune.models.options import TrainOptions

# A round's training where nothing is said: the InCoP scripts' epochs.
EPOCHS = 20


@click.command(
    "iterate",
    epilog="""\b
Examples:
  onnxprune iterate incop-if --model lenet5 --data digits
  onnxprune iterate lth --model resnet20 --data cifar10:data --rounds 10 --epochs 40 --trials 3 --jobs 3
  onnxprune iterate sap --model model.onnx --data train.zip --eval test.zip --p 1 --q 2
  onnxprune iterate surp --model model.onnx --data train.zip --sparsity 0.5,0.8,0.9,0.95 --retrain 5
  onnxprune iterate incop-if --model lenet5 --data digits --resume
""",
)
@click.argument("method", metavar="METHOD")
@click.option("--model", "--net_arch", required=True, metavar="M", help="a network of the zoo, a checkpoint, or M.onnx")
@click.option("--out", type=click.Path(), metavar="DIR", help="the run's folder  [default: runs/METHOD-MODEL-SEED]")
@click.option("--resume", is_flag=True, help="go on with the run that the folder holds")
@click.option("--from", "resumed", type=click.Path(), metavar="DIR", help="go on with the run in DIR")
@click.option("--eval", "test", metavar="D", help=f"tested on instead of a part of --data; {DATA_HELP}")
@click.option("--preprocess", type=click.Path(), help="how pixels become inputs  [default: what the model says]")
@click.option("--rounds", "--exper_imp_total_iter", type=int, default=15, show_default=True, help="rounds of pruning")
@click.option(
    "--trials", "--exper_num_trial", type=int, default=1, show_default=True, help="runs, a seed after another"
)
@click.option("--jobs", type=int, default=1, show_default=True, help="trials at a time, each a process")
@click.option("--prune", type=float, default=0.2, show_default=True, help="lth: share of what is left that goes")
@click.option("--p", "--prune_p", type=float, default=0.5, show_default=True, help="order of the PQ index's first norm")
@click.option("--q", "--prune_q", type=float, default=1.0, show_default=True, help="order of its second")
@click.option("--eta", type=float, default=0.0, show_default=True, help="slack of its bound")
@click.option("--prune-gamma", type=float, default=1.0, show_default=True, help="factor of the share that goes")
@click.option("--beta", type=float, default=0.9, show_default=True, help="largest share that goes at once")
@click.option("--scope", default="global", show_default=True, help="compare weights: global, layer or neuron")
@click.option(
    "--dense-epochs", "--net_warmup", type=int, help="epochs of the dense network first  [default: a round's]"
)
@click.option(
    "--rewind", type=int, metavar="EPOCH", help="rounds start from its weights  [default: the dense phase's end]"
)
@click.option("--chunk", type=int, default=2, show_default=True, help="incop: epochs between two looks at the flow")
@click.option("--epsilon", default="auto", show_default=True, help="incop: distance of flows that ends a round")
@click.option("--settled", is_flag=True, help="incop: a round ends too when its flow moves less than epsilon")
@click.option("--relative", is_flag=True, help="incop: the distance is over the dense flow's length")
@click.option("--signed", is_flag=True, help="incop-if: correlations keep their signs")
@click.option(
    "--probe", type=int, default=1000, show_default=True, help="examples that flows are measured on, and refits"
)
@click.option("--sparsity", metavar="S,S,...", help="surp, magnitude: zeros after each stage  [default: the authors']")
@click.option(
    "--values",
    metavar="V",
    help="surp, magnitude: a stage starts from original, reconstruction (surp's default) or refit weights",
)
@click.option("--exper_type", hidden=True, help="performance or efficiency: both are always recorded")
@partial(
    lesson_options,
    teacher="whose outputs --loss distill and both learn  [default: the dense network, once trained]",
    loss="labels; with --teacher both",
)
@config_option
@data_options
@partial(learning_options, epochs=str(EPOCHS), epochs_names=("--epochs", "--retrain", "--net_train_epochs"))
@log_options
@distributed_options
@click.option("--json", "as_json", is_flag=True, help="print the rounds as JSON")
def command(method: str, **given: Any) -> None:
    """Prune M in rounds of pruning and training, and leave a folder that tells of it.

    METHOD is lth (lottery tickets), sap (adaptive by the PQ index), incop-if or incop-gf (adaptive, rounds end by
    information or gradient flow; also ciap, giap), surp or magnitude (stages of --sparsity, training goes on). After
    every round the folder has weights, masks, figures and an ONNX file; --epochs are a round's at most (20).
    """
    from onnxprune.models import require_torch

    require_torch("iterate")
    from onnxprune.cli.learning import launch

    if given["trials"] < 1 or given["jobs"] < 1:
        raise OptionError("trials and jobs: at least 1 is accepted")
    if given["exper_type"] not in (None, "performance", "efficiency"):
        raise OptionError(f"exper_type {given['exper_type']!r}: performance and efficiency are accepted")
    if given["trials"] > 1:
        _trials(method, given)
    else:
        launch(_run, method, given)


def _run(method: str, given: dict[str, Any], alone: bool = True) -> None:
    """Run one trial in one process; of several, ``--json`` tells what they have in common alone."""
    from pathlib import Path

    from onnxprune.api.iterating import iterate
    from onnxprune.api.options import Options
    from onnxprune.cli.learning import lesson_of
    from onnxprune.cli.train import hooked
    from onnxprune.models import distributed

    options, training = _options(method, given)
    resume, out = given["resume"] or given["resumed"] is not None, given["resumed"] or given["out"]
    opened = Options(
        seed=given["seed"], drop_classes=given["dropped"], preprocess=given["preprocess"], download=given["download"]
    )

    def told(row: dict[str, Any], _: Any) -> None:
        if not given["as_json"]:
            click.echo(
                f"round {row['round']}: {row['remaining']:.2%} of the weights left, {row['epochs']} epochs, "
                f"held-out accuracy {row['validation_accuracy']:.2%}"
            )

    with hooked(training.epochs, given) as hooks:
        found = iterate(
            given["model"], options, given["data"], training=training, out=out, test=given["test"], resume=resume,
            options=opened, val_share=given["val_share"], hooks=hooks, on_round=told,
            lesson=lesson_of(given, "labels" if given["teacher"] is None else "both"), teacher=given["teacher"],
        )  # fmt: skip
    if distributed.rank() or (given["as_json"] and not alone):
        return
    if given["as_json"]:
        click.echo(
            json.dumps({"out": str(found.folder.path), "epochs": found.epochs, "rounds": found.rounds}, indent=2)
        )
        return
    last = found.rounds[-1]
    click.echo(
        f"test accuracy {found.rounds[0]['test_accuracy']:.2%} dense, {last['test_accuracy']:.2%} with "
        f"{last['left']:,} of {last['weights']:,} weights; {found.epochs} epochs in all"
    )
    click.echo(f"{Path(found.folder.path) / 'README.md'} tells more")


def _options(method: str, given: dict[str, Any]) -> tuple[IterateOptions, TrainOptions]:
    from onnxprune.cli.learning import train_options
    from onnxprune.models.iterative.options import SCHEDULE, IterateOptions, method_named
    from onnxprune.models.iterative.pqindex import Sap

    asked = dict(given)
    asked["epochs"] = EPOCHS if given["epochs"] is None else given["epochs"]
    training = train_options(_network(given["model"]), asked)
    options = IterateOptions(
        method=method_named(method),
        rounds=given["rounds"],
        prune=given["prune"],
        sap=Sap(given["p"], given["q"], given["eta"], given["prune_gamma"], given["beta"]),
        scope=given["scope"],
        warmup=given["dense_epochs"],
        rewind=given["rewind"],
        chunk=given["chunk"],
        epsilon=None if given["epsilon"] == "auto" else _number("epsilon", given["epsilon"]),
        settled=given["settled"],
        relative=given["relative"],
        signed=given["signed"],
        probe=given["probe"],
        sparsities=SCHEDULE if given["sparsity"] is None else _numbers("sparsity", given["sparsity"]),
        values=given["values"],
    )
    return options, training


def _network(model: str) -> str:
    from onnxprune.models.produce import ExportSource, named_source

    return "" if model.endswith(".onnx") else named_source(ExportSource(model)).network


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"--{name} {text!r}: a number is accepted, or auto") from error


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.strip("[]").split(","))
    except ValueError as error:
        raise OptionError(f"--{name} {text!r}: numbers with commas are accepted, as 0.5,0.8") from error


def _trials(method: str, given: dict[str, Any]) -> None:
    """Run several seeds, some at a time, and say what they have in common."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from pathlib import Path

    from onnxprune.models.iterative.options import method_named
    from onnxprune.models.iterative.telling import aggregate

    if given["resumed"] is not None:
        raise OptionError("--from names one run: with --trials give --out and --resume")
    name = f"{method_named(method)}-{_network(given['model']) or Path(given['model']).stem}"
    place = Path(given["out"] or "runs")
    seeds = range(given["seed"], given["seed"] + given["trials"])
    each = [given | {"seed": seed, "out": str(place / f"{name}-{seed}"), "trials": 1} for seed in seeds]
    if given["resume"]:
        each = [one | {"resume": (Path(one["out"]) / "run.json").is_file()} for one in each]
    if given["jobs"] == 1:
        for one in each:
            _run(method, one, alone=False)
    else:
        with ProcessPoolExecutor(given["jobs"], mp_context=get_context("spawn")) as pool:
            for done in [pool.submit(_run, method, one, alone=False) for one in each]:
                done.result()
    file = place / f"{name}-trials.json"
    found = aggregate([Path(one["out"]) for one in each], file)
    if given["as_json"]:
        click.echo(json.dumps(found, indent=2))
        return
    for row in found:
        accuracy, left, epochs = (row[key] for key in ("test_accuracy", "remaining", "epochs"))
        click.echo(
            f"round {row['round']}: {left['mean']:.2%} left, test accuracy {accuracy['mean']:.2%} "
            f"(deviation {accuracy['deviation']:.2%}), {epochs['mean']:.1f} epochs"
        )
    click.echo(f"wrote {file}")
