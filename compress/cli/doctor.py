"""``onnxprune doctor``: what is installed and what works on this machine."""

from __future__ import annotations

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="print as JSON on stdout")
@click.pass_context
def command(ctx: click.Context, /, as_json: bool) -> None:
    """Show versions, execution providers and clashes between installed packages; status 4 when something is wrong."""
    from onnxprune.runtime.doctor import diagnose

    found = diagnose()
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        for name, version in {**found.versions, **found.optional}.items():
            click.echo(f"{name:<18} {version or 'not installed'}")
        click.echo(f"{'providers built in':<18} {', '.join(found.compiled)}")
        click.echo(f"{'providers usable':<18} {', '.join(found.usable)}")
        click.echo(f"{'CUDA devices':<18} {found.devices}")
        for notice in found.notices:
            click.echo(f"notice: {notice}")
        for problem in found.problems:
            click.echo(f"problem: {problem}")
        if not found.problems:
            click.echo("all is well")
    if found.problems:
        ctx.exit(4)
