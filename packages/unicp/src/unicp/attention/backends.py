"""Lets an interceptor see the backends of diffusers' attention dispatcher, while some transformer wants it."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from diffusers.models import attention_dispatch
from torch import Tensor, nn

from unicp.attention.interceptor import backend_functions, by_backend

_users: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_seen: dict[Any, Callable[..., Tensor]] = {}


def see_backends(user: nn.Module) -> None:
    """Puts a function in front of each registered backend; without an interceptor around the call it changes nothing.

    The registry is the one place that every processor passes which asks for a backend: processors import the
    dispatcher by name, each into a module of its own.
    """
    backends = _backends()
    for name, function in list(backends.items()):
        if not hasattr(function, "unicp_hidden"):
            plain = str(getattr(name, "value", name))
            backend_functions[plain] = function
            _seen[name] = backends[name] = _intercepted(plain, function)
    _users.add(user)


def leave_backends(user: nn.Module) -> None:
    """Gives the registry back as it was, once no transformer wants it otherwise."""
    _users.discard(user)
    if _users:
        return
    backends = _backends()
    for name, function in _seen.items():
        # Somebody else may have put something in its place.
        if backends.get(name) is function:
            backends[name] = function.unicp_hidden  # type: ignore[attr-defined]
    _seen.clear()


def _backends() -> dict[Any, Callable[..., Tensor]]:
    registry = getattr(attention_dispatch, "_AttentionBackendRegistry", None)
    return getattr(registry, "_backends", {})


def _intercepted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def backend(**named: Any) -> Tensor:
        return by_backend(name, function, **named)

    backend.unicp_hidden = function  # type: ignore[attr-defined]
    return backend
