"""Everything a user can set, with units, checked when it is made; and the presets.

`Settings` is frozen: `unicp.preset("balanced")` gives one, `dataclasses.replace` (or
`unicp.preset("balanced", tolerance=0.1)`) changes it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from unicp.context import Axis, Quantity
from unicp.errors import SettingsError

Level = Literal["model", "stack", "block", "unit"]
Role = Literal["self", "spatial", "temporal", "joint", "cross", "feed_forward"]
Weighting = Literal["impact", "uniform"]
ErrorScale = Literal["stream", "own"]
Basis = Literal["pca", "centred_pca", "kq_svd", "output_pca"]
StoreDtype = Literal["same", "float32", "bfloat16", "float16"]

ATTENTION_ROLES: tuple[Role, ...] = ("self", "spatial", "temporal", "joint", "cross")


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise SettingsError(f"{name}={value!r}", "not a finite number of at least 0", "use 0 or more")


def _check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
        raise SettingsError(f"{name}={value!r}", f"not {limits}", f"use {limits}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}={value!r}", f"known values {', '.join(choices)}", "use one of them")


def _check_choices(name: str, values: tuple[Any, ...], choices: tuple[str, ...]) -> None:
    if not values:
        raise SettingsError(f"{name}=()", "nothing named", f"use one or more of {', '.join(choices)}")
    for value in values:
        _check_choice(name, value, choices)


def _as_tuple(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise SettingsError(f"{name}={values!r}", "not a list or tuple", f"use ({values!r},)")
    return tuple(values)


def _plain(value: Any) -> Any:
    """Lists for tuples, as JSON has them, so that what is read back compares equal to what was written."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _check_names(values: Iterable[str], kind: type) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingsError(f"settings {', '.join(unknown)}", "unknown names", f"use {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Slicing:
    """PCAS: attention at reduced width where an output cannot be served (DESIGN 3.2).

    widths: widths to try: whole numbers are channels of a head (multiples of 8, at most the head width), fractions
        below 1 are shares of it, rounded up to a multiple of 8; empty = off.
    tolerance: largest relative error of a sliced attention output, over query rows and channels, for that width to be
        taken, at a step of average impact (see `Settings.weighting`); measured on a few query rows in that very call,
        with the basis "output_pca" after the output projection of the attention.
    min_saving: a width is taken only if it saves at least this share of the time of the attention, as far as operations
        tell it, after what the bases and the measurement cost; below 0 slices are taken though they cost more, to see
        what they do.
    basis: "pca" of the keys alone (the paper's), "centred_pca" of queries and centred keys, "kq_svd", which is best for
        the scores, or "output_pca": the same, with values along the axes of what attention makes of them.
    reducer: name of what reduces attention; see `unicp.register_reducer`.
    refresh: most calls of a branch that one set of bases serves; one whose slices are not within the tolerance any
        more is fitted anew earlier. 1 = a fit in every call: bases age fast, and a fit takes little where tokens are
        many.
    """

    widths: tuple[int | float, ...] = ()
    tolerance: float = 0.03
    min_saving: float = 0.1
    basis: Basis = "output_pca"
    reducer: str = "pca_slices"
    refresh: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", _as_tuple("slicing widths", self.widths))
        for width in self.widths:
            is_share = isinstance(width, float) and 0 < width < 1
            is_width = isinstance(width, int) and not isinstance(width, bool) and width >= 8 and width % 8 == 0
            if not is_share and not is_width:
                found = "neither a positive multiple of 8 nor a fraction below 1"
                raise SettingsError(f"slicing width {width!r}", found, "use 8, 16, 24, … or for example 0.5")
        _check_number("slicing tolerance", self.tolerance)
        is_number = isinstance(self.min_saving, (int, float)) and not isinstance(self.min_saving, bool)
        if not is_number or not -math.inf < self.min_saving < 1:
            raise SettingsError(f"slicing min_saving={self.min_saving!r}", "not a number below 1", "use 0 to 0.9")
        _check_choice("slicing basis", self.basis, get_args(Basis))
        _check_integer("slicing refresh", self.refresh, 1)

    def widths_for(self, head_width: int) -> tuple[int, ...]:
        """The widths to try for heads of this width, widest last. Raises SettingsError for one above it."""
        found: set[int] = set()
        for width in self.widths:
            channels = width if isinstance(width, int) else math.ceil(width * head_width / 8) * 8
            if channels > head_width:
                raise SettingsError(
                    f"slicing width {width}", f"heads of width {head_width}", f"use at most {head_width}"
                )
            found.add(channels)
        return tuple(sorted(found))


@dataclass(frozen=True)
class Settings:
    """What may be served instead of computed, and how much error that may cause.

    tolerance: largest sum of predicted errors over the steps that one window serves, at a step of average impact; where
        the sampler is mended and the tolerance small, errors from the second step of a window on count up to twice, and
        those of the last two steps of a run up to twice again.
        An error is the root mean square of (served - true) over all positions of a sample, relative to the root mean
        square of the true output (`error_scale="own"`) or of the residual stream it is added to ("stream"; for spans
        "stack" and "block", the others have no stream at hand and use their own size). 0 serves nothing: bit-equal.
    level: what is skipped as one: the "model" output, the whole "stack" of blocks, each "block", or each "unit".
    roles: which units, for level "unit".
    damping: a forecast follows only as much of its line's rise as came true at the last computed step, by least squares
        (level "model").
    quantity, axis: what is forecast, and over what (other spans than "model" forecast their output). Where a model or
        scheduler does not tell its noise levels, the output over steps.
    policy: name of what decides; see `unicp.register_policy`.
    predictor: name of what fills in: "line" through the last two full steps, or "reuse" of the last one; see
        `unicp.register_predictor`.
    weighting: "impact" divides the tolerance by the built-in impact of an error at that noise level on the
        final latent (to the power 1.5 where outputs are served), "uniform" does not.
    max_window: most steps in a row that stored outputs may serve.
    max_reach: farthest a forecast may reach beyond its newer point, in distances between its two points (steps). The
        noise of the points grows with it; 1 makes windows widen by one step at a time.
    full_every: a fixed window instead of an error-aware one: one full step in so many, whatever the error. None =
        off. It is the baseline that error-aware windows must beat.
    full_steps: a fixed schedule: compute exactly these steps, counted from 0, and the first ones that a forecast
        needs, whatever the error. None = off. Not together with `full_every`.
    first, last: how many steps at the start and the end of a run are always computed.
    replay: as soon as it is known what served outputs should have been, have the sampler take their steps again
        (docs/method.md, 3.6); level "model". Where that cannot be done, and under "stack", UniPC goes without its
        corrector for the computed step.
    text_keys_values: keep keys and values of the text between steps (lossless).
    store_bytes: most bytes of stored outputs; None = `store_factor` residual streams per branch.
    trace_entries: most entries that a session keeps of what it did, one for each cache point, branch and step (about
        700 bytes); beyond, whole runs are dropped, the oldest first, but never the last one. None = all are kept.
    store_dtype, store_device: how they are kept ("same" = as the model made them; device "same" or any torch device).
    """

    tolerance: float = 0.05
    level: Level = "model"
    roles: tuple[Role, ...] = ATTENTION_ROLES
    damping: bool = True
    quantity: Quantity = "noise"
    axis: Axis = "log_snr"
    policy: str = "error_window"
    predictor: str = "line"
    weighting: Weighting = "impact"
    error_scale: ErrorScale = "stream"
    max_window: int = 4
    max_reach: float = 1.0
    full_every: int | None = None
    full_steps: tuple[int, ...] | None = None
    first: int = 2
    last: int = 1
    replay: bool = True
    text_keys_values: bool = True
    slicing: Slicing = Slicing()
    store_bytes: int | None = None
    store_factor: float = 2.5
    store_dtype: StoreDtype = "same"
    store_device: str = "same"
    trace_entries: int | None = 32_768

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", _as_tuple("roles", self.roles))
        _check_number("tolerance", self.tolerance)
        _check_choice("level", self.level, get_args(Level))
        _check_choices("roles", self.roles, get_args(Role))
        _check_choice("quantity", self.quantity, get_args(Quantity))
        _check_choice("axis", self.axis, get_args(Axis))
        _check_choice("weighting", self.weighting, get_args(Weighting))
        _check_choice("error_scale", self.error_scale, get_args(ErrorScale))
        _check_integer("max_window", self.max_window, 1)
        _check_number("max_reach", self.max_reach)
        if self.full_every is not None:
            _check_integer("full_every", self.full_every, 1)
        if self.full_steps is not None:
            object.__setattr__(self, "full_steps", _as_tuple("full_steps", self.full_steps))
            for step in self.full_steps:
                _check_integer("full_steps", step, 0)
            if self.full_every is not None:
                found = f"full_every={self.full_every} as well"
                raise SettingsError("a fixed schedule (full_steps)", found, "give one of the two")
        _check_integer("first", self.first, 1)
        _check_integer("last", self.last, 0)
        _check_choice("store_dtype", self.store_dtype, get_args(StoreDtype))
        _check_number("store_factor", self.store_factor)
        if self.store_bytes is not None:
            _check_integer("store_bytes", self.store_bytes, 0)
        if self.trace_entries is not None:
            _check_integer("trace_entries", self.trace_entries, 1)
        if not isinstance(self.slicing, Slicing):
            raise SettingsError(f"slicing={self.slicing!r}", "not a Slicing", "pass unicp.Slicing(widths=(32,))")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into traces; `from_dict` reads them back."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Inverse of `to_dict`. Raises SettingsError for unknown names and bad values."""
        _check_names(values, cls)
        values = dict(values)
        if isinstance(values.get("slicing"), dict):
            _check_names(values["slicing"], Slicing)
            values["slicing"] = Slicing(**values["slicing"])
        return cls(**values)


# One way to forecast throughout a run: switching between several lost fidelity (docs/results.md), and the noise
# estimate cannot be served at the first steps, where errors hurt most.
_MODEL_SPAN = Settings(first=4, last=0, max_window=6)

PRESETS: dict[str, Settings] = {
    # What is known of the paper and nothing else; see docs/method.md.
    "paper": Settings(
        tolerance=0.1,
        level="unit",
        predictor="reuse",
        quantity="output",
        axis="step",
        weighting="uniform",
        error_scale="own",
        max_window=4,
        replay=False,
        text_keys_values=False,
        slicing=Slicing(widths=(0.5,), tolerance=1.0, basis="pca"),
        store_factor=64.0,
    ),
    "quality": replace(_MODEL_SPAN, tolerance=0.08),
    "balanced": replace(_MODEL_SPAN, tolerance=0.2),
    "fast": replace(_MODEL_SPAN, tolerance=10.0, max_window=4),
}


def preset(name: str, **changes: Any) -> Settings:
    """The settings of a preset ("paper", "quality", "balanced", "fast"), with fields changed by keyword.

    Raises SettingsError for an unknown preset or field.
    """
    if name not in PRESETS:
        raise SettingsError(f"preset {name!r}", f"the presets {', '.join(PRESETS)}", "name one of them")
    _check_names(changes, Settings)
    return dataclasses.replace(PRESETS[name], **changes)
