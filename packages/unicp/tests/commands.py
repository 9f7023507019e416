"""The command line as tests call it."""

from __future__ import annotations

from typer.testing import CliRunner

from unicp.cli.main import app


def run(*arguments: object):
    """What came of a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """The one line on stderr."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("unicp: error: ")
    return line
