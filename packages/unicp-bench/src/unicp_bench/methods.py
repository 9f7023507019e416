"""Methods that can be measured: a name, a setting of a sweep, and a context manager that puts it on a pipeline.

Speed and fidelity are measured around the context manager, in the same way for all (`harness`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import unicp
from unicp.cli.loading import sampler
from unicp.errors import InputError, UnsupportedModelError
from unicp.planning.prior import standing_in
from unicp.planning.products import Products
from unicp.planning.targets import parse_target
from unicp.settings import Settings, preset
from unicp_bench.plugins import REGISTRIES
from unicp_bench.rows import PLAIN, PLANNED

SLICE_WIDTHS = (0.25, 0.5, 0.75)  # shares of a head that reducers by name are tried at
# The plain run is timed again after so many methods, because a machine's speed changes.
PLAIN_EVERY = 8


class CannotRunError(Exception):
    """A method cannot run on this model, or not correctly; tables show the message."""


@dataclass
class Bench:
    """What a method may need to know.

    Attributes:
        pipe: The pipeline.
        steps: Of the reference.
        latent: Gives the final latent of a run of (prompt, seed), for calibrations.
        calibration: Prompts for that, disjoint from those of tables.
        profile: Of the model, for targets; `None` = the shipped one.
        prior: Products that plans are made from where there is no profile; `None` = the built-in ones.
        notes: Results of calibrations, kept over clips.
    """

    pipe: Any
    steps: int
    latent: Callable[[str, int], Any]
    calibration: tuple[str, ...] = ()
    profile: Path | None = None
    prior: Products | None = None
    notes: dict[str, Any] = field(default_factory=dict)


Attach = Callable[[Bench], Any]  # gives a context manager


@dataclass(frozen=True)
class Method:
    """One method at one setting.

    Attributes:
        family: Name of the method.
        setting: Of its sweep.
        attach: Gives a context manager that puts it on.
        steps: Of a run; `None` = as many as the reference.
        prepare: A calibration, once per model.
        is_plugged: Whether it runs a registered policy, predictor or reducer by its name.
    """

    family: str
    setting: str
    attach: Attach
    steps: int | None = None
    prepare: Callable[[Bench], None] | None = None
    is_plugged: bool = False

    @property
    def name(self) -> str:
        """Family and setting in one string."""
        return f"{self.family} {self.setting}".strip()


@contextmanager
def _nothing(bench: Bench) -> Iterator[None]:
    yield


def plain() -> Method:
    """The reference itself."""
    return Method(PLAIN, "", _nothing)


def unicp_method(setting: str, settings: Settings, family: str = "UniCP") -> Method:
    """UniCP under `settings`."""

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        with standing_in(bench.prior):
            try:
                session = unicp.enable(bench.pipe, settings)
            except UnsupportedModelError as error:
                raise CannotRunError(str(error)) from None
            with session:
                yield

    return Method(family, setting, attach)


def with_target(text: str) -> Method:
    """UniCP under a target like "psnr>=35", if there is a profile of the model."""
    parse_target(text)

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        try:
            with standing_in(bench.prior), unicp.enable(bench.pipe, target=text, profile=bench.profile) as session:
                if session.is_guess:
                    raise CannotRunError("no profile of this model is shipped: unicp calibrate makes one for --profile")
                yield
        except InputError as error:  # of `enable` or of the run
            raise CannotRunError(f"{error.found}: {error.do}") from None

    return Method(PLANNED, text, attach)


def with_preset(name: str, **changes: Any) -> Method:
    """UniCP under a preset, with fields changed by keyword."""
    parts = [name, *(f"{key} {value}" for key, value in changes.items())]
    return unicp_method(" ".join(parts), preset(name, **changes))


def fixed_window(window: int) -> Method:
    """Every `window`-th step full, whatever the error, with the forecast of the preset "balanced"."""
    return unicp_method(str(window), preset("balanced", full_every=window), "fixed window")


def fewer_steps(steps: int) -> Method:
    """The plain pipeline with fewer steps of its own sampler."""
    return Method("fewer steps", str(steps), _nothing, steps)


def other_sampler(name: str, steps: int) -> Method:
    """The plain pipeline with fewer steps of another sampler ("unipc", "dpm", "euler")."""

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        before = bench.pipe.scheduler
        try:
            sampler(bench.pipe, name)
        except InputError as error:
            raise CannotRunError(error.found) from None
        if type(bench.pipe.scheduler) is type(before):
            bench.pipe.scheduler = before
            raise CannotRunError("it is the reference's own sampler: see fewer steps")
        try:
            yield
        finally:
            bench.pipe.scheduler = before

    return Method(f"fewer steps, {name}", str(steps), attach, steps)


def with_registered(kind: str, name: str, changes: dict[str, Any], rest: str = "") -> Method:
    """The preset "balanced" with a registered policy, predictor or reducer.

    Args:
        kind: "policy", "predictor" or "reducer". A reducer runs with slices on, within the usual tolerance.
        name: As it was registered.
        changes: Other settings, by name; those in "slicing" change single fields of it.
        rest: The changes as text, for the name of the method.

    Raises:
        InputError: There is none of this name.
        SettingsError: A change cannot be made.
    """
    registry = REGISTRIES[kind]
    if name not in registry:
        do = f"name one of them, or give the module that registers it with --plugin (unicp.register_{kind})"
        raise InputError(f"method '{kind}:{name}'", f"the {kind} names {', '.join(registry)}", do)
    values = preset("balanced").to_dict()
    slicing = values["slicing"]
    if kind == "reducer":
        slicing |= {"widths": SLICE_WIDTHS, "reducer": name}
    else:
        values[kind] = name
    changed = changes.get("slicing")
    settings = Settings.from_dict(
        {**values, **changes, "slicing": {**slicing, **changed} if isinstance(changed, dict) else changed or slicing}
    )
    return replace(unicp_method(rest, settings, f"{kind}:{name}"), is_plugged=True)


def parse_method(text: str, known: list[Method]) -> Method:
    """A method by its name.

    Besides the known ones: "fixed window N", "fewer steps N", "target psnr>=35", a preset, 'PRESET {"tolerance": 0.1,
    …}', and "policy:NAME", "predictor:NAME" or "reducer:NAME", with changes behind it as for a preset.

    Raises:
        InputError: There is no such method.
    """
    for method in known:
        if method.name == text:
            return method
    words = text.split()
    is_number = bool(words) and re.fullmatch("[0-9]{1,9}", words[-1]) is not None
    if words[:-1] in (["fixed", "window"], ["fewer", "steps"]) and is_number and int(words[-1]) > 0:
        return fixed_window(int(words[-1])) if words[0] == "fixed" else fewer_steps(int(words[-1]))
    name, _, rest = text.removeprefix("UniCP ").partition(" ")
    if name == "target":
        return with_target(rest)
    kind, colon, registered = text.partition(":")
    is_registered = bool(colon) and kind in REGISTRIES
    if is_registered:
        # A name may be of several words.
        registered, brace, rest = registered.partition(" {")
        rest = brace.strip() + rest
    try:
        changes = json.loads(rest) if rest else {}
        if is_registered:
            return with_registered(kind, registered, changes, rest)
        settings = Settings.from_dict({**preset(name).to_dict(), **changes})
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        found = f"no such method ({error})"
        raise InputError(f"method {text!r}", found, 'name a preset, "fixed window 2" or "fewer steps 12"') from None
    return unicp_method(f"{name} {rest}".strip(), settings)
