"""Everything that a user can set, with units, checked when it is made; and the presets.

`Settings` is frozen. `unicp.preset("balanced")` gives one, and `dataclasses.replace` or
`unicp.preset("balanced", tolerance=0.1)` gives a changed one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, ValidationError
from typing_extensions import dataclass_transform

from unicp.context import Axis, Quantity
from unicp.errors import SettingsError

Level = Literal["model", "stack", "block", "unit"]
Role = Literal["self", "spatial", "temporal", "joint", "cross", "feed_forward"]
Weighting = Literal["impact", "uniform"]
ErrorScale = Literal["stream", "own"]
Basis = Literal["pca", "centred_pca", "kq_svd", "output_pca"]
StoreDtype = Literal["same", "float32", "bfloat16", "float16"]

ATTENTION_ROLES: tuple[Role, ...] = ("self", "spatial", "temporal", "joint", "cross")

_NotNegative = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]
_AtLeastOne = Annotated[int, Field(ge=1)]
_Width = Annotated[int, Field(ge=8, multiple_of=8)] | Annotated[float, Field(gt=0, lt=1)]
# A list, as JSON has it, will do for a tuple.
_OfAnyKind = Field(strict=False)

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def _checked(kind: type[C]) -> type[C]:
    """A frozen dataclass whose fields pydantic checks; what it finds wrong is one `SettingsError`."""
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=config)(kind)
    initialise: Callable[..., None] = made.__init__

    @functools.wraps(initialise)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            initialise(self, *args, **values)
        except ValidationError as error:
            raise _told(made, error) from error

    made.__init__ = checked
    return made


def _told(kind: type, error: ValidationError) -> SettingsError:
    """The first thing that pydantic found wrong, with the name of the setting."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause
    name = str(first["loc"][0]) if first["loc"] else kind.__name__
    if first["type"] == "unexpected_keyword_argument":
        return _unknown([name], kind)
    found = first["msg"][:1].lower() + first["msg"][1:]
    asked = f"{kind.__name__}({name}={first['input']!r:.100})"
    return SettingsError(asked, found, f"see help(unicp.{kind.__name__})")


def _unknown(names: Iterable[str], kind: type) -> SettingsError:
    known = sorted(field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    return SettingsError(f"settings {', '.join(sorted(names))}", "unknown names", f"use {', '.join(known)}")


@_checked
class Slicing:
    """PCAS: attention at reduced width in calls that cannot be skipped (docs/method.md).

    Attributes:
        widths: Widths to try. Whole numbers are channels of a head: multiples of 8, at most the head width. Fractions
            below 1 are shares of the head width, rounded up to a multiple of 8. Empty turns slicing off.
        tolerance: Largest relative error (rms over query rows and channels) that a width may have to be taken, at a
            step of average impact (see `Settings.weighting`). UniCP measures it on a few query rows in that very call;
            with the basis "output_pca" after the output projection.
        min_saving: A width is taken only if it saves at least this share of the attention's operations, after what
            bases and measurement cost. Below 0, slices are taken though they cost more, to see what they do.
        basis: "pca" of the keys alone (the paper's), "centred_pca" of queries and centred keys, "kq_svd", which is
            best for the scores, or "output_pca", which also places values along the axes of the attention's output.
        reducer: Name of what reduces attention; see `unicp.register_reducer`.
        refresh: Most calls of a branch that one set of bases is used for; UniCP fits earlier where slices leave the
            tolerance. 1 fits in every call: bases age fast, and a fit is cheap where tokens are many.

    Raises:
        SettingsError: A value cannot be used.

    Example:
        >>> Slicing(widths=(0.5, 16)).widths_for(64)
        (16, 32)
    """

    widths: Annotated[tuple[_Width, ...], _OfAnyKind] = ()
    tolerance: _NotNegative = 0.03
    min_saving: Annotated[float, Field(lt=1)] = 0.1
    basis: Basis = "output_pca"
    reducer: str = "pca_slices"
    refresh: _AtLeastOne = 1

    def widths_for(self, head_width: int) -> tuple[int, ...]:
        """The widths to try for heads of this width, in channels, widest last.

        Raises:
            SettingsError: One of them is above the head width.
        """
        found: set[int] = set()
        for width in self.widths:
            channels = width if isinstance(width, int) else math.ceil(width * head_width / 8) * 8
            if channels > head_width:
                raise SettingsError(
                    f"slicing width {width}", f"heads of width {head_width}", f"use at most {head_width}"
                )
            found.add(channels)
        return tuple(sorted(found))


@_checked
class Settings:
    """What may be skipped, and how much error that may cause.

    The few that you tune:

    Attributes:
        tolerance: How much the result may change; 0 skips nothing: bit-equal. Of a plan: the largest predicted change
            of the final sample (rms, in units of the sample), by built-in errors; a model's own change may be a few
            times larger or smaller. Of the online rule: the largest sum of predicted relative errors over the steps
            that one window skips, at a step of average impact. Where the sampler replays steps and that is small,
            errors from the second step of a window on count up to twice, and those of the last two steps up to twice
            again.
        level: What is skipped as one: the "model" output, the whole "stack" of blocks, each "block" or each "unit"
            (an attention or feed-forward part).
        max_window: Most steps in a row that the online rule skips.
        first: Steps at the start of a run that are full under the online rule.
        last: Steps at the end of a run that are full under it.
        slicing: Attention at reduced width; see `Slicing`.
        store_bytes: Most bytes of stored outputs; `None` = `store_factor` residual streams per branch.
        trace_entries: Most entries that a session keeps of what it did, one for each cache point, branch and step
            (about 700 bytes). Beyond, whole runs are dropped, the oldest first, but never the last one. `None` = all.

    Research settings; the defaults are those of the presets, and docs/results.md says what the others do:

    Attributes:
        roles: Which units are skipped, for level "unit".
        damping: A forecast follows only as much of its line's slope as came true at the last full step, by least
            squares (level "model").
        quantity: What is forecast for level "model": the "output", or the "noise" or "clean" estimate in it. Where a
            model or scheduler does not tell its noise levels, it is the output over steps.
        axis: What forecasts are drawn over: "sigma", "log_snr" or "step".
        policy: Name of what decides: "planned" chooses the full steps when a run begins (docs/method.md), and is for
            level "model"; at other levels, and where a run cannot be planned, the online rule stands in with twice the
            tolerance. "error_window" is that rule. See `unicp.register_policy`.
        predictor: Name of what fills in: "line" through the last two full steps, or "reuse" of the last one; see
            `unicp.register_predictor`.
        weighting: "impact" divides the tolerance by the built-in impact of an error at that noise level on the final
            latent (to the power 1.5 where steps are skipped); "uniform" does not.
        error_scale: What an error is relative to: the rms of the residual "stream" that the output is added to, or of
            the output's "own" rms. Only blocks and the stack have a stream; the model and units use their own.
        max_reach: Farthest that a forecast may reach beyond its newer point, in distances between its two points on
            the axis of steps. The noise of the points grows with it; 1 makes windows widen by one step at a time.
        full_every: A fixed window instead of an error-aware one: one full step in so many, whatever the error. `None` =
            off. It is the baseline that error-aware windows must beat.
        full_steps: A fixed schedule: exactly these steps are full, counted from 0, and the first, whatever the error.
            `None` = off. Not together with `full_every`.
        replay: As soon as a full step shows what skipped outputs should have been, the sampler takes their steps again
            (docs/method.md, 3.4); level "model". Where that cannot be done, and under "stack", UniPC goes without its
            corrector for the full step.
        text_keys_values: Keep keys and values of the text between steps (lossless).
        store_factor: Stored outputs in residual streams per branch, where `store_bytes` is `None`.
        store_dtype: How outputs are stored; "same" = as the model made them.
        store_device: Where outputs are stored; "same", or any torch device.

    Raises:
        SettingsError: A value cannot be used. Names of policies, predictors and reducers are looked up later, when
            UniCP is enabled, since a plug-in may add them.

    Example:
        >>> preset("balanced", tolerance=0.1).max_window
        6
    """

    tolerance: _NotNegative = 0.05
    level: Level = "model"
    roles: Annotated[tuple[Role, ...], Field(strict=False, min_length=1)] = ATTENTION_ROLES
    damping: bool = True
    quantity: Quantity = "noise"
    axis: Axis = "log_snr"
    policy: str = "error_window"
    predictor: str = "line"
    weighting: Weighting = "impact"
    error_scale: ErrorScale = "stream"
    max_window: _AtLeastOne = 4
    max_reach: _NotNegative = 1.0
    full_every: _AtLeastOne | None = None
    full_steps: Annotated[tuple[_Count, ...], _OfAnyKind] | None = None
    first: _AtLeastOne = 2
    last: _Count = 1
    replay: bool = True
    text_keys_values: bool = True
    slicing: Slicing = Slicing()
    store_bytes: _Count | None = None
    store_factor: _NotNegative = 2.5
    store_dtype: StoreDtype = "same"
    store_device: str = "same"
    trace_entries: _AtLeastOne | None = 32_768

    def __post_init__(self) -> None:
        if self.full_steps is not None and self.full_every is not None:
            found = f"full_every={self.full_every} as well"
            raise SettingsError("a fixed schedule (full_steps)", found, "give one of the two")
        is_fixed = self.full_steps is not None or self.full_every is not None
        if is_fixed and self.policy not in ("error_window", "planned"):
            found = "full_every or full_steps, which decide in its place"
            raise SettingsError(f"policy {self.policy!r}", found, "give one of the two")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written into traces; `from_dict` reads them back."""
        return pydantic.TypeAdapter(Settings).dump_python(self, mode="json")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Inverse of `to_dict`.

        Raises:
            SettingsError: A name is unknown, or a value cannot be used.
        """
        given: dict[str, Any] = dict(values)
        if isinstance(given.get("slicing"), dict):
            given["slicing"] = Slicing(**given["slicing"])
        return cls(**given)


# The output exists at every noise level and is replayed without a conversion. `first`, `last` and `max_window` are of
# the online rule, which stands in where a run cannot be planned.
_MODEL = Settings(policy="planned", quantity="output", first=4, last=0, max_window=6)

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
    "quality": replace(_MODEL, tolerance=0.04),
    "balanced": replace(_MODEL, tolerance=0.1),
    "fast": replace(_MODEL, tolerance=0.25),
}


def preset(name: str, **changes: Any) -> Settings:
    """The settings of a preset, with fields changed by keyword.

    Args:
        name: "paper", "quality", "balanced" or "fast".
        changes: Fields of `Settings`.

    Raises:
        SettingsError: The preset or a field is unknown, or a value cannot be used.

    Example:
        >>> preset("fast").tolerance
        0.25
    """
    if name not in PRESETS:
        raise SettingsError(f"preset {name!r}", f"the presets {', '.join(PRESETS)}", "name one of them")
    return replace(PRESETS[name], **changes)
