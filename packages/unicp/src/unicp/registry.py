"""Named parts that a third party may add: policies, predictors and reducers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from unicp.errors import SettingsError

T = TypeVar("T")


class Registry(Generic[T]):
    """Makers of one kind of part, by name.

    Args:
        kind: What the parts are called in errors and in `unicp.register_…`, such as "policy".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._makers: dict[str, T] = {}

    def add(self, name: str, maker: T, *, replace: bool = False) -> None:
        """Adds a maker.

        Args:
            name: By which settings ask for it.
            maker: Makes one part.
            replace: Whether it may take the place of another of this name.

        Raises:
            SettingsError: The name is no text, or is taken and `replace` is false; the maker cannot be called.
        """
        asked = f"to register the {self.kind} {name!r}"
        if not isinstance(name, str) or not name.strip():
            raise SettingsError(asked, "no name", "give a short text")
        if not callable(maker):
            found = f"a {type(maker).__name__}, which cannot be called"
            raise SettingsError(asked, found, f"pass a class, or a function that makes the {self.kind}")
        if name in self._makers and not replace:
            raise SettingsError(asked, "another one of this name", "choose another name, or pass replace=True")
        self._makers[name] = maker

    def __getitem__(self, name: str) -> T:
        if name not in self._makers:
            found = f"the names {', '.join(self)}"
            raise SettingsError(
                f"{self.kind} {name!r}", found, f"use one of them, or add yours: unicp.register_{self.kind}"
            )
        return self._makers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._makers))
