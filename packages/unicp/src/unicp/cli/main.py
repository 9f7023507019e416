"""The command line: parser, errors and exit codes. Each command is a module of its own."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unicp.cli import plugins, terminal
from unicp.cli.calibrate import calibrate
from unicp.cli.compare import compare
from unicp.cli.generate import generate
from unicp.cli.inspect_model import inspect_model
from unicp.cli.plan import plan
from unicp.errors import InputError, UniCPError, one_line
from unicp.files import package_version

CRASHED, BAD_INPUT, INTERRUPTED, NOBODY_READS = 1, 2, 130, 141

EPILOG = """\b
Exit codes:
  0    done
  1    an error in UniCP or in a library, with a traceback
  2    bad input: one line on stderr says what was asked, what was found and what to do
  130  interrupted; no half-written file is left
  141  the reader of the output has left, as in `unicp … | head`
"""

# Commands that another package brings.
_OF_BENCH = ("bench", "report")

# Errors of the machine, not of the program: reported in one line.
_OF_THE_MACHINE = frozenset(
    getattr(errno, name, -1)
    for name in ("ENOSPC", "EDQUOT", "EIO", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "EPERM", "ENAMETOOLONG")
)


class _Group(TyperGroup):
    """Turns what a user did wrong into one line and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _OF_BENCH and self.get_command(ctx, args[0]) is None:
            raise InputError(f"unicp {args[0]}", "no package unicp-bench", 'pip install "unicp[bench]"')
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        with terminal.guarded(), terminal.interruptible():
            sys.exit(self._code(*args, **extra))

    def _code(self, *args: Any, **extra: Any) -> int:
        """Runs a command and returns its exit code; errors are printed on stderr."""
        # Never standalone: typer would print its own errors over several lines.
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            code = INTERRUPTED if terminal.was_interrupted() else _told(error)
        if code == INTERRUPTED:
            typer.echo("unicp: interrupted", err=True)
        return code if isinstance(code, int) else 0


def _told(error: Exception) -> int:
    """Prints an error on stderr and returns its exit code.

    Errors of the user, the parser and the machine are one line. Any other is a fault of UniCP or of a library, and is
    printed with a traceback.
    """
    if isinstance(error, UniCPError):
        return _failed(str(error))
    if isinstance(error, terminal.OutputLostError):
        terminal.give_up_stdout()
        if error.has_left:
            return NOBODY_READS
        return _failed(f"asked: to print the result; found: {error.reason}; do: send stdout where there is room")
    if isinstance(error, MemoryError):
        return _failed("asked: to hold it all in memory; found: too little memory; do: ask for less")
    # Where the class of the parser's errors lives depends on the version of typer.
    message = getattr(error, "format_message", None)
    if message is not None:
        context = getattr(error, "ctx", None)
        return _failed(f"{message()} (see {'unicp' if context is None else context.command_path} --help)")
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = "" if error.filename is None else f" ({error.filename})"
        return _failed(
            f"asked: to use a file; found: {error.strerror}{where}; do: free some space, or name another file"
        )
    traceback.print_exception(error)
    return CRASHED


def _failed(message: str) -> int:
    typer.echo(f"unicp: error: {one_line(message)}", err=True)
    return BAD_INPUT


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


def _add_plugins() -> None:
    """Adds the commands of other packages. One that cannot be loaded is reported and left out."""
    for name, point in sorted(plugins.entry_points(plugins.COMMANDS).items()):
        try:
            command = point.load()
        except Exception as error:
            found = f"{type(error).__name__}: {one_line(str(error))}"
            typer.echo(
                f"unicp: asked: the command {name} of {point.value}; found: {found}; do: reinstall its package",
                err=True,
            )
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)


_add_plugins()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unicp {package_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make videos with diffusion transformers faster, without training.

    \b
    Examples:
      unicp compare "a red star moving left on a striped background"
      unicp generate "a red star moving left on a striped background" --preset fast --out star.mp4
      unicp inspect --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


if __name__ == "__main__":
    app()
