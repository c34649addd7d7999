"""The command line: one module per verb, imported only when it runs; it parses and prints, nothing else.

Exit status: 0 done; 1 a target or gate was not met; 2 usage; 3 the model or the data is unusable; 4 the runtime or
the file system failed; 130 interrupted.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import click

from onnxprune import __version__
from onnxprune.errors import OnnxPruneError

VERBS: dict[str, str] = {
    "demo": "train, export, compress and report on the embedded digits, in under two minutes",
    "apply": "run a recipe of passes on a model and judge the result against the original",
    "plan": "what a recipe would touch, what not and why, before any work",
    "compare": "judge one model against another on the same examples",
    "evaluate": "accuracy, loss, per-class accuracy and latency of one model",
    "encode": "a whole model as one .surp file, in a code whose every prefix is a model",
    "decode": "a model out of a .surp file, or out of its begin",
    "bench": "latency of models side by side, with intervals, and what it means",
    "sweep": "recipes at many sizes, side by side",
    "explain": "how a model was made, out of its own metadata",
    "inspect": "layers, parameters, FLOPs and channel spaces of a model",
    "passes": "list the passes, or the options of one",
    "train": "train a network in PyTorch and export it",
    "prune-tune": "prune a trained network and train on with the zeros fixed",
    "finetune": "train a compressed model further, towards the original or labels",
    "iterate": "prune and train in rounds: lottery tickets, SAP, InCoP, SuRP, magnitude",
    "export": "export a checkpoint to ONNX",
    "doctor": "versions, execution providers, clashing installations",
}


class LazyGroup(click.Group):
    """A group whose verbs are imported when they run, and whose errors are one sentence and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb's module and return its command."""
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"onnxprune.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a wrong one is answered with the nearest."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(VERBS)}"
            ctx.fail(f"no such command '{args[0]}': {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program; wrong usage too is one sentence and its status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "onnxprune"
            click.echo(f"onnxprune: {error.format_message().rstrip('.')}; see {where} --help", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"onnxprune: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("onnxprune: interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; what it raises on purpose becomes one line on stderr and the exit status."""
        try:
            return super().invoke(ctx)
        except OnnxPruneError as error:
            _fail(ctx, str(error), error.status)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", 130)
        except _Terminated:
            _fail(ctx, "terminated", 128 + signal.SIGTERM)
        except MemoryError:
            _fail(ctx, "out of memory; give a smaller --batch-size or fewer examples", 4)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f" '{error.filename}'" if error.filename else ""
            _fail(ctx, f"the file system failed{where}: {error.strerror or error}", 4)


def _fail(ctx: click.Context, message: str, status: int) -> None:
    click.echo(f"onnxprune: {message}", err=True)
    if ctx.meta:
        from onnxprune.cli.outputs import write_error

        write_error(ctx, message, status)
    ctx.exit(status)


class _Terminated(BaseException):
    """A polite kill: it unwinds the stack, so that temporary files go as they do on Ctrl-C."""


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  onnxprune demo
  onnxprune apply surp,id --in model.onnx --out pruned.onnx
  onnxprune apply "id(flops=0.5)" --in model.onnx --out pruned.onnx --calib train.zip --eval test.zip
  onnxprune compare model.onnx pruned.onnx --data test.zip --min-agreement 0.99
""",
)
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Make trained ONNX models smaller and faster, and prove what that did to their decisions."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
