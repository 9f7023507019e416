"""Values that come from a file, checked against the dataclass they are to become: strict types and bounded sizes.

pydantic does the checking, of the dataclass as it is written: nothing is read by hand, and what a field may hold stands
beside it. It is imported at the first file, so that `import unicp` stays quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache, partial, reduce
from operator import or_
from types import MappingProxyType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from unicp.errors import UniCPError

NOT_FINITE = ("nan", "inf", "-inf")  # how such numbers stand in our files, since JSON has none
# The square of it, and a sum of a million such squares, are still numbers.
LARGEST = 1e100
MOST = 2**63 - 1  # what a count of bytes or operations can be
LONGEST_TEXT = 100_000
MOST_STEPS = 100_000  # a hundred times what schedulers are trained with; maps of a run have a column for each

_R = TypeVar("_R")


class MisfitError(Exception):
    """A value that is not what its field takes; `str` says which, in a few words."""


@dataclass(frozen=True)
class Within:
    """Beside the type of a number, as `Annotated[float, Within(0, 1)]`: its least and its largest value.

    endless: infinity, which files hold as a word, is one of them. missing: NaN, for what was not measured, is.
    """

    low: float
    high: float
    endless: bool = False
    missing: bool = False

    def allows(self, number: float) -> bool:
        """Of what is not finite."""
        return self.missing if number != number else self.endless and (number > 0 or self.low <= -LARGEST)


ANY_NUMBER = Within(-LARGEST, LARGEST, endless=True, missing=True)
Positive = Annotated[float, Within(1e-30, 1e30)]
NotNegative = Annotated[float, Within(0, 1e30, endless=True)]
Finite = Annotated[float, Within(-1e30, 1e30)]
Step = Annotated[int, Within(0, MOST_STEPS)]
Decibels = Annotated[float, Within(-1000, 1000, endless=True)]


class Checker:
    """Reads values as one kind of dataclass, or as any other type that stands in such a dataclass.

    instead: types to go by in place of those of fields with these names, wherever they stand.
    """

    def __init__(self, kind: Any, instead: Mapping[str, Any] = MappingProxyType({})):
        from pydantic import TypeAdapter

        # In a list, because pydantic takes no configuration for what has one of its own.
        form: Any = _form(kind, instead)
        self._adapter: Any = TypeAdapter(list[form], config=_config())  # type: ignore[valid-type]

    def read(self, value: Any) -> Any:
        """The value as an instance. Raises MisfitError."""
        from pydantic import ValidationError

        try:
            return self._adapter.validate_python([value])[0]
        except ValidationError as error:
            raise MisfitError(_told(error.errors(include_url=False))) from error


@lru_cache(maxsize=64)
def saved_fields(kind: Any) -> tuple[str, ...]:
    """Names of the fields of a dataclass that are kept in a file: those that it is made of, private ones left out."""
    return tuple(field.name for field in fields(kind) if field.init and not field.name.startswith("_"))


def _config() -> Any:
    return {"strict": True, "extra": "forbid"}


def _form(hint: Any, instead: Mapping[str, Any], within: Within | None = None) -> Any:
    """The type that pydantic is to check in place of `hint`."""
    from pydantic import AfterValidator, BeforeValidator, Field

    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _form(inner[0], instead, inner[1])
    if is_dataclass(hint):
        return _record(hint, instead)
    if hint is float:
        return Annotated[float, BeforeValidator(partial(_number, within or ANY_NUMBER))]
    if hint is int:
        low, high = (-MOST, MOST) if within is None else (int(within.low), int(within.high))
        return Annotated[int, Field(ge=low, le=high)]
    if hint is str:
        return Annotated[str, Field(max_length=LONGEST_TEXT)]
    if origin in (Union, UnionType):
        return reduce(or_, (_form(one, instead) for one in inner))
    if origin is list:
        return Annotated[list[_form(inner[0], instead)], Field(fail_fast=True)]
    if origin is dict:
        return dict[_form(inner[0], instead), _form(inner[1], instead)]
    if origin is Counter:
        return Annotated[_form(dict[inner[0], int], instead), AfterValidator(Counter)]
    return hint


def _record(kind: Any, instead: Mapping[str, Any]) -> Any:
    from pydantic import AfterValidator
    from typing_extensions import NotRequired, TypedDict

    hints = {**get_type_hints(kind, include_extras=True)}
    known: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in saved_fields(kind):
            continue
        form = _form(instead.get(field.name, hints[field.name]), instead)
        is_needed = field.default is MISSING and field.default_factory is MISSING
        known[field.name] = form if is_needed else NotRequired[form]
    checked: Any = TypedDict(kind.__name__, known)  # type: ignore[operator]
    checked.__pydantic_config__ = _config()
    return Annotated[checked, AfterValidator(lambda values: kind(**values))]


def _number(within: Within, value: Any) -> Any:
    """A number within bounds, or one of the words for what JSON has no number for; anything else for pydantic."""
    if isinstance(value, str) and value in NOT_FINITE:
        number = float(value)
        if within.allows(number):
            return number
        raise ValueError("no finite number")
    if isinstance(value, (int, float)) and not within.low <= value <= within.high:
        raise ValueError("out of range")
    return value


def _told(errors: list[Any]) -> str:
    """What pydantic found wrong first, in our words."""
    first = errors[0]
    where, kind, value = _where(first["loc"]), first["type"], first["input"]
    strange = {"extra_forbidden": "unknown", "missing": "missing"}
    if kind in strange:
        place = first["loc"][:-1]
        alike = [error for error in errors if error["type"] in strange and error["loc"][:-1] == place]
        found = {
            word: sorted(str(error["loc"][-1])[:40] for error in alike if error["type"] == one)
            for one, word in strange.items()
        }
        words = " and ".join(f"{word} {', '.join(names)}" for word, names in found.items() if names)
        return f"fields {words[:150]}{f' in {_where(place)}' if len(place) > 1 else ''}"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UniCPError):
        return cause.found
    if kind in ("value_error", "greater_than_equal", "less_than_equal"):
        return f"{where} is a number out of range: {_shown(value)}"
    if kind == "string_too_long":
        return f"{where} is a text of more than {LONGEST_TEXT} characters"
    return f"{where} is {_shown(value)}"


def _where(place: tuple[Any, ...]) -> str:
    """entries[3].step; the first part is that of the list of one, and names of keys may be anything."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in place[1:])
    return "".join(parts).removeprefix(".")[:100] or "the file"


def _shown(value: Any) -> str:
    # A container may be as large as the file.
    return f"a JSON {type(value).__name__}" if isinstance(value, (list, dict)) else f"{value!r:.40}"
