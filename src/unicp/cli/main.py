"""The command line: parser, errors and exit codes. Each command is a module of its own."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unicp.cli.bench import bench
from unicp.cli.calibrate import calibrate
from unicp.cli.compare import compare
from unicp.cli.generate import generate
from unicp.cli.inspect_model import inspect_model
from unicp.cli.plan import plan
from unicp.cli.report import report
from unicp.errors import UniCPError
from unicp.files import package_version

BAD_INPUT, INTERRUPTED = 2, 130

EPILOG = """\b
Exit codes:
  0    done
  1    an error in UniCP or in a library, with a traceback
  2    bad input: one line on stderr says what was asked, what was found and what to do
  130  interrupted; no half-written file is left
"""


class _Group(TyperGroup):
    """Turns what a user did wrong into one line and an exit code."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        # Always as a part: standalone, typer would print its own errors over several lines.
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except (KeyboardInterrupt, typer.Abort):
            typer.echo("unicp: interrupted", err=True)
            sys.exit(INTERRUPTED)
        except UniCPError as error:
            _fail(str(error))
        except Exception as error:
            # The parser's own errors; where their class lives depends on the version of typer.
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            _fail(f"{message()} (see unicp --help)")
        if code == INTERRUPTED:
            typer.echo("unicp: interrupted", err=True)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="unicp",
    cls=_Group,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
app.command("generate")(generate)
app.command("compare")(compare)
app.command("inspect")(inspect_model)
app.command("calibrate")(calibrate)
app.command("plan")(plan)
app.command("bench")(bench)
app.command("report")(report)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unicp {package_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """UniCP makes diffusion videos sooner, without training.

    \b
    Examples:
      unicp compare "a red star moving left on a striped background"
      unicp generate "a red star moving left on a striped background" --preset fast --out star.mp4
      unicp inspect --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _fail(message: str) -> None:
    typer.echo(f"unicp: error: {' '.join(message.split())}", err=True)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    app()
