"""A hash of what a measured number depends on besides method, prompt and seed: weights, code, machine.

Every row carries it. Rows with the same hash, method, setting, prompt and seed are the same measurement.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import unicp
import unicp_bench
import unicp_testbeds
from unicp.files import json_ready

WHOLE = 2**20  # files up to this size are read as a whole
SAMPLE = 64  # bytes read at both ends of every tensor, so that one changed layer is seen
HEADER = 100 * 2**20  # safetensors allows no larger one
PLACES = 64  # at which another large file is read
# Files beside the weights that influence nothing.
_ASIDE = (".md", ".png", ".jpg", ".gif", ".mp4", ".log")
# Parts of the packages that make no numbers.
_NOT_MEASURING = (
    "unicp/cli",
    "unicp/reporting",
    "unicp_bench/cli",
    "unicp_bench/comparison",
    "unicp_bench/formats",
    "unicp_bench/html",
    "unicp_bench/parts",
    "unicp_bench/report",
    "unicp_bench/statistics",
    "unicp_bench/tables",
    "unicp_testbeds/weights",
)


def fingerprint(model: str | Path) -> str:
    """Twelve digits that change with the weights or configuration of a model folder; the name if it is no folder.

    Small files count whole, safetensors by the header and both ends of every tensor, other large files by their size
    and `PLACES` samples. So a model of many gigabytes takes well under a second.
    """
    folder = Path(model)
    if not folder.is_dir():
        return str(model)
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix in _ASIDE or any(part.startswith(".") for part in inside.parts) or not path.is_file():
            continue
        size = path.stat().st_size
        found.update(f"{inside.as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            if size <= WHOLE:
                found.update(file.read())
            else:
                for piece in _samples(file, size, path.suffix == ".safetensors"):
                    found.update(piece)
    return found.hexdigest()[:12]


def code() -> str:
    """Twelve digits that change with the sources that measure and are measured, and with shipped profiles."""
    found = hashlib.sha256()
    for root in (Path(package.__file__).parent for package in (unicp, unicp_bench, unicp_testbeds)):
        for path in sorted([*root.rglob("*.py"), *(root / "planning" / "profiles").glob("*.json")]):
            inside = path.relative_to(root.parent).as_posix()
            if not inside.startswith(_NOT_MEASURING):
                found.update(f"{inside}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def file_hash(path: Path) -> str:
    """Twelve digits of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def hash_of(facts: Mapping[str, Any]) -> str:
    """Sixteen digits of facts, without the commit: the code counts."""
    told = {name: value for name, value in facts.items() if name != "commit"}
    text = json.dumps(json_ready(told), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the facts that differ between two environments of rows."""
    names = sorted({*one, *other} - {"commit"})
    return [name for name in names if one.get(name) != other.get(name)]


def _samples(file: BinaryIO, size: int, is_safetensors: bool) -> Iterator[bytes]:
    places = [size * place // PLACES for place in range(PLACES)]
    if is_safetensors:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(min(length, HEADER))
        yield header
        begin = 8 + length
        try:
            tensors = [tensor["data_offsets"] for tensor in json.loads(header).values() if "data_offsets" in tensor]
            places += [begin + place for first, last in tensors for place in (first, max(first, last - SAMPLE))]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # damaged: loading it will say so
    for place in sorted(places):
        if place < size:
            file.seek(place)
            yield file.read(SAMPLE)
