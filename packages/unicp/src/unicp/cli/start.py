"""The command `unicp`: starts the command line, or says in one line what is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Top-level packages of the extra `cli` that every command needs.
_OF_THE_EXTRA = ("typer", "rich", "av", "PIL", "numpy")


def main() -> None:
    """Runs the command line; exits with code 2 and one line on stderr if the extra `cli` is not installed."""
    # find_spec imports nothing: `unicp --help` needs few of them.
    missing = [name for name in _OF_THE_EXTRA if find_spec(name) is None]
    if missing:
        found = f"no package {', '.join(missing)}"
        line = f'unicp: error: asked: the command line of UniCP; found: {found}; do: pip install "unicp[cli]"'
        print(line, file=sys.stderr)
        sys.exit(2)
    from unicp.cli.main import app

    app()


if __name__ == "__main__":
    main()
