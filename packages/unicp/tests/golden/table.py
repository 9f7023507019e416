"""All golden cases, and the files of what they came to."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tests.golden import families, paths, pipelines, schedulers, testbeds
from tests.golden.case import Case

DATA = Path(__file__).parent / "data"
CASES: tuple[Case, ...] = (*families.CASES, *pipelines.CASES, *schedulers.CASES, *paths.CASES, *testbeds.CASES)
BY_KEY = {case.key: case for case in CASES}
assert len(BY_KEY) == len(CASES)
FILES = tuple(dict.fromkeys(case.file for case in CASES))


def read(file: str) -> dict[str, dict[str, Any]]:
    """What was recorded of the cases of a file, by their keys."""
    with gzip.open(DATA / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return {record["key"]: record for record in map(json.loads, lines)}


def write(file: str, records: list[dict[str, Any]]) -> Path:
    """Writes a file of recorded cases, the same bytes for the same records."""
    text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    path = DATA / f"{file}.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return path
