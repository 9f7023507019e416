"""Says how large each wheel of a folder is, and fails where the library's is 400 kB or more.

python scripts/wheel_sizes.py dist
"""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 400_000  # bytes of the library's wheel


def main() -> None:
    """The command; see the module's docstring."""
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    for wheel in wheels:
        print(f"{wheel.name}: {wheel.stat().st_size / 1000:.0f} kB")
    (library,) = (wheel for wheel in wheels if wheel.name.startswith("unicp-"))
    if library.stat().st_size >= LIMIT:
        sys.exit(f"asked: a wheel under {LIMIT / 1000:.0f} kB; found: {library.name}; do: take out what is not needed")


if __name__ == "__main__":
    main()
