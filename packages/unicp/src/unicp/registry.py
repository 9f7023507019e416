"""Named parts that a third party may add: policies, predictors and reducers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from unicp.errors import SettingsError

T = TypeVar("T")


class Registry(Generic[T]):
    """Makers of one kind of part, by name.

    Args:
        kind: What the parts are called in errors, such as "policy".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._makers: dict[str, T] = {}

    def add(self, name: str, maker: T, *, replace: bool = False) -> None:
        """Adds a maker.

        Raises:
            SettingsError: The name is taken and `replace` is false.
        """
        if name in self._makers and not replace:
            do = "choose another name, or pass replace=True"
            raise SettingsError(f"to register the {self.kind} {name!r}", "one of this name", do)
        self._makers[name] = maker

    def __getitem__(self, name: str) -> T:
        if name not in self._makers:
            do = f"name one of them, or add yours with unicp.register_{self.kind}"
            raise SettingsError(f"{self.kind} {name!r}", f"the {self.kind} names {', '.join(self)}", do)
        return self._makers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._makers))
