"""Adapters for other libraries' accelerators: the caches of diffusers and of cache-dit, as installed.

Each family has a sweep. If the defaults of a library match or skip nothing, they are one more setting. A method that
cannot run correctly on a model raises `CannotRunError`, which becomes a row.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from unicp.models.finder import map_model
from unicp.models.noise import read_schedule
from unicp_bench.methods import Attach, Bench, CannotRunError, Method

MAGNITUDES = "MagCache magnitude ratios"


def diffusers_methods() -> list[Method]:
    """Every training-free cache of diffusers that is made for more than one model, each with its sweep."""
    found = [
        Method("diffusers FirstBlockCache", f"threshold {t}", _cache("FirstBlockCacheConfig", threshold=t))
        for t in (0.03, 0.06, 0.1, 0.16, 0.25, 0.4)
    ]
    for order, window in ((1, 2), (1, 3), (1, 4), (1, 5), (2, 3), (0, 2)):
        # The defaults of this cache match no module of most video models: name every attention and feed-forward.
        attach = _cache(
            "TaylorSeerCacheConfig",
            cache_interval=window,
            disable_cache_before_step=3,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=_unit_names,
        )
        found.append(Method("diffusers TaylorSeer", f"order {order} interval {window}", attach))
    found.append(Method("diffusers TaylorSeer", "defaults", _cache("TaylorSeerCacheConfig")))
    for threshold, most in ((0.03, 2), (0.06, 3), (0.12, 4), (0.24, 4), (0.5, 6)):
        attach = _cache(
            "MagCacheConfig",
            threshold=threshold,
            max_skip_steps=most,
            num_inference_steps=_steps,
            mag_ratios=lambda bench: bench.notes[MAGNITUDES],
        )
        setting = f"threshold {threshold} skips {most}"
        found.append(Method("diffusers MagCache", setting, attach, prepare=_calibrate_mag_cache))
    for threshold, most in ((0.1, 2), (0.15, 2), (0.25, 2), (0.35, 3), (0.5, 3), (1.0, 4), (2.0, 6)):
        found.append(Method("diffusers SeaCache", f"threshold {threshold} skips {most}", _sea_cache(threshold, most)))
    for window, cross in ((2, None), (2, 3), (3, 4)):
        attach = _cache(
            "PyramidAttentionBroadcastConfig",
            spatial_attention_block_skip_range=window,
            temporal_attention_block_skip_range=window,
            cross_attention_block_skip_range=cross,
            current_timestep_callback=_timestep_callback,
        )
        setting = f"window {window}" + ("" if cross is None else f" cross {cross}")
        found.append(Method("diffusers PyramidAttentionBroadcast", setting, attach))
    for window in (2, 3):
        attach = _cache(
            "FasterCacheConfig",
            spatial_attention_block_skip_range=window,
            temporal_attention_block_skip_range=window,
            current_timestep_callback=_timestep_callback,
        )
        found.append(Method("diffusers FasterCache", f"window {window}", attach))
    return found


def cache_dit_methods() -> list[Method]:
    """cache-dit's DBCache, alone and with its forecasts, and DBPrune, each with its sweep; and its defaults."""
    found = [Method("cache-dit DBCache", "defaults", _db_cache(None, None, None))]
    for threshold in (0.06, 0.12, 0.24, 0.4):
        found.append(Method("cache-dit DBCache", f"F1 threshold {threshold}", _db_cache(threshold, None, 4)))
    for threshold in (0.06, 0.12, 0.24, 0.4, 0.8):
        found.append(
            Method("cache-dit DBCache + Taylor", f"F1 threshold {threshold}", _db_cache(threshold, "taylor", 4))
        )
    for threshold in (0.12, 0.24, 0.4):
        found.append(Method("cache-dit DBCache + DMD", f"F1 threshold {threshold}", _db_cache(threshold, "dmd", 4)))
    found.append(Method("cache-dit DBCache + FoCa", "F1 threshold 0.24", _db_cache(0.24, "foca", 4)))
    for threshold in (0.03, 0.06, 0.12, 0.24):
        found.append(Method("cache-dit DBPrune", f"threshold {threshold}", _db_prune(threshold)))
    return found


# --- diffusers


def _cache(config: str, **settings: Any) -> Attach:
    """An adapter for a config class of diffusers: on with `enable_cache`, off with `disable_cache`.

    settings: arguments of the class; a function gives the value from the `Bench`.
    """

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        from diffusers import hooks

        transformer = bench.pipe.transformer
        if not hasattr(transformer, "enable_cache"):
            raise CannotRunError(f"{type(transformer).__name__} has no enable_cache")
        values = {name: value(bench) if callable(value) else value for name, value in settings.items()}
        made = getattr(hooks, config)(**values)
        try:
            transformer.enable_cache(made)
        except (ValueError, TypeError, KeyError) as error:
            raise CannotRunError(_one_line(error)) from None
        try:
            yield
        finally:
            transformer.disable_cache()
            transformer._reset_stateful_cache()

    return attach


def _steps(bench: Bench) -> int:
    return bench.steps


def _unit_names(bench: Bench) -> list[str]:
    return [re.escape(unit.name) for unit in map_model(bench.pipe.transformer).units]


def _timestep_callback(bench: Bench) -> Callable[[], Any]:
    return lambda: bench.pipe.current_timestep


def _calibrate_mag_cache(bench: Bench) -> None:
    """Runs the cache's own calibration, which prints its ratios, and keeps those of the first branch."""
    if MAGNITUDES in bench.notes:
        return
    printed = io.StringIO()
    calibrating = _cache("MagCacheConfig", calibrate=True, num_inference_steps=_steps)
    with calibrating(bench), contextlib.redirect_stdout(printed):
        bench.latent(bench.calibration[0], 0)
    lists = re.findall(r"\[([-0-9., e]+)\]", printed.getvalue())
    if not lists:
        raise CannotRunError("its calibration run gave no magnitude ratios")
    bench.notes[MAGNITUDES] = [float(value) for value in lists[0].split(",")]


def _sea_cache(threshold: float, most: int) -> Attach:
    def layout(bench: Bench) -> Any:
        # SeaCache knows the layout of Wan's samples and of few others.
        name = type(bench.pipe.transformer).__name__
        return next((found for start, found in _LAYOUTS.items() if name.startswith(start)), None)

    cache = _cache("SeaCacheConfig", threshold=threshold, max_consecutive_cached=most, raw_vision_callback=layout)

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        with cache(bench), _telling_steps(bench):
            yield

    return attach


def _frames_second(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """The samples that SeaCache compares, (channels, frames, height, width) each, from (batch, frames, channels, …)."""
    return list(kwargs["hidden_states"].permute(0, 2, 1, 3, 4).unbind(0))


def _whole_clips(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """The same from (batch, channels, frames, …)."""
    return list(kwargs["hidden_states"].unbind(0))


def _pictures(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """The same from pictures, (batch, channels, height, width)."""
    return list(kwargs["hidden_states"].unsqueeze(2).unbind(0))


def _packed(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """The same from tokens, (batch, frames x height x width, channels)."""
    sizes = (kwargs["num_frames"], kwargs["height"], kwargs["width"])
    return list(kwargs["hidden_states"].unflatten(1, sizes).permute(0, 4, 1, 2, 3).unbind(0))


_LAYOUTS = {"CogVideoX": _frames_second, "HunyuanVideo": _whole_clips, "SD3": _pictures, "LTXVideo": _packed}


@contextmanager
def _telling_steps(bench: Bench) -> Iterator[None]:
    """Tells the cache context what most pipelines do not tell: step, noise level and number of steps.

    Without them SeaCache computes everything.
    """
    pipe, inner = bench.pipe, bench.pipe.transformer.cache_context

    def cache_context(name: str, **told: Any) -> Any:
        if told:
            return inner(name, **told)
        timesteps = [float(one) for one in pipe.scheduler.timesteps]
        now = float(pipe.current_timestep)
        schedule = read_schedule(pipe.scheduler)
        level = None if schedule is None else schedule.level(now)
        sigma = None if level is None else level.sigma
        return inner(name, step_index=timesteps.index(now), sigma=sigma, num_inference_steps=len(timesteps))

    pipe.transformer.cache_context = cache_context
    try:
        yield
    finally:
        del pipe.transformer.cache_context


# --- cache-dit


def _cache_dit() -> Any:
    if importlib.util.find_spec("cache_dit") is None:
        raise CannotRunError('cache-dit is not installed (pip install "unicp[bench]")')
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    import cache_dit

    logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
    return cache_dit


@contextmanager
def _enabled(bench: Bench, config: Any, calibrator: Any = None) -> Iterator[None]:
    cache_dit = _cache_dit()
    try:
        cache_dit.enable_cache(bench.pipe, cache_config=config, calibrator_config=calibrator)
    except (ValueError, TypeError, AssertionError) as error:
        raise CannotRunError(_one_line(error)) from None
    try:
        yield
    finally:
        cache_dit.disable_cache(bench.pipe)


def _db_cache(threshold: float | None, forecast: str | None, warm_up: int | None) -> Attach:
    """threshold: None = the library's defaults."""

    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        cache_dit = _cache_dit()
        config = cache_dit.DBCacheConfig()
        if threshold is not None:
            config = cache_dit.DBCacheConfig(
                Fn_compute_blocks=1,
                Bn_compute_blocks=0,
                residual_diff_threshold=threshold,
                max_warmup_steps=warm_up,
            )
        with _enabled(bench, config, _calibrator(cache_dit, forecast)):
            yield

    return attach


def _calibrator(cache_dit: Any, forecast: str | None) -> Any:
    if forecast is None:
        return None
    if forecast == "foca":
        raise CannotRunError("its configuration is a placeholder in cache-dit 1.5.0: no such calibrator is built")
    if forecast == "dmd":
        from cache_dit.caching.cache_contexts.calibrators import DMDCalibratorConfig

        return DMDCalibratorConfig()
    return cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1)


def _db_prune(threshold: float) -> Attach:
    @contextmanager
    def attach(bench: Bench) -> Iterator[None]:
        cache_dit = _cache_dit()
        config = cache_dit.DBPruneConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=threshold,
            max_warmup_steps=4,
        )
        with _enabled(bench, config):
            yield

    return attach


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
