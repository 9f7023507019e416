"""The command `unicp`: starts the command line, or says in one line what must be installed for it."""

from __future__ import annotations

import sys

# Top-level names of the packages that the extra `cli` brings.
_OF_THE_EXTRA = frozenset(("typer", "rich", "av", "PIL", "numpy"))


def main() -> None:
    """Runs the command line; exit code 2 and one line on stderr where the extra `cli` is not installed."""
    try:
        import av  # noqa: F401
        import PIL  # noqa: F401
        import rich  # noqa: F401

        from unicp.cli.main import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _OF_THE_EXTRA:
            raise
        print(
            "unicp: error: asked: the command line of UniCP; "
            f'found: no package {missing}; do: pip install "unicp[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    app()


if __name__ == "__main__":
    main()
