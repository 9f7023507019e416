"""`unicp compare`: the same video plain and accelerated, side by side, and the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unicp.cli import options
from unicp.cli.options import OFF, Request
from unicp.errors import InputError

if TYPE_CHECKING:
    from unicp.cli.common import Generated, Prepared
    from unicp.numerics.fidelity import Psnr
    from unicp.planning.plan import Plan
    from unicp.reporting.summary import Summary

WARM_UP_STEPS = 2


@dataclass(frozen=True, eq=False)
class _Comparison:
    plain: Generated
    fast: Generated
    fidelity: Psnr
    summary: Summary | None
    plan: Plan | None
    prepared: Prepared

    @property
    def speed_up(self) -> float:
        return self.plain.seconds / self.fast.seconds


def compare(
    prompt: options.PromptArgument,
    model: options.ModelOption = None,
    preset: options.PresetOption = options.DEFAULT_PRESET,
    tolerance: options.ToleranceOption = None,
    target: options.TargetOption = None,
    profile: options.ProfileOption = None,
    steps: options.StepsOption = None,
    seed: options.SeedOption = 0,
    cfg: options.CfgOption = None,
    height: options.HeightOption = None,
    width: options.WidthOption = None,
    frames: options.FramesOption = None,
    negative: options.NegativeOption = None,
    out: options.OutOption = Path("comparison.mp4"),
    fps: options.FpsOption = None,
    trace: options.TraceOption = None,
    sampler: options.SamplerOption = "default",
    as_json: options.JsonOption = False,
) -> None:
    """Make a video plain and accelerated, and compare the two.

    One file shows both side by side. Both runs start from the same noise. A short run before them warms up and is not
    timed. Seconds are those of whole pipeline calls: text, denoising and decoding.

    \b
    Examples:
      unicp compare "a red star moving left on a striped background"
      unicp compare "a blue ring moving up on a plain background" --preset fast --out ring.mp4
      unicp compare "a cat" --model ./my-pipeline --tolerance 0.1 --json
    """
    request = Request(
        prompt=prompt,
        model=model,
        preset=preset,
        tolerance=tolerance,
        steps=steps,
        seed=seed,
        cfg=cfg,
        height=height,
        width=width,
        frames=frames,
        negative=negative,
        out=out,
        fps=fps,
        trace=trace,
        sampler=sampler,
        target=target,
        profile=profile,
        is_pair=True,
    )
    if request.preset == OFF:
        raise InputError(f"compare with --preset {OFF}", "nothing to compare with", "name a preset")
    _report(request, _run(request), as_json)


def _run(request: Request) -> _Comparison:
    import unicp
    from unicp.cli import common
    from unicp.cli.video import side_by_side
    from unicp.numerics.fidelity import psnr

    assert request.enabling is not None
    prepared = common.prepare(request)
    # A model that cannot be accelerated fails before the plain run, not after it.
    with unicp.enable(prepared.pipe, **request.enabling):
        pass
    common.generate(prepared, "warming up", steps=min(WARM_UP_STEPS, prepared.steps or WARM_UP_STEPS))
    plain = common.generate(prepared, "plain")
    made = common.generate_enabled(prepared, request, request.name)
    fast = made.video
    with common.waiting("comparing"):
        fidelity = psnr(plain.frames, fast.frames)
        result = _Comparison(plain, fast, fidelity, made.summary, made.plan, prepared)
        joined = side_by_side(plain.frames, fast.frames, _labels(request, result))
    common.write(joined, request, prepared, made)
    return result


def _labels(request: Request, result: _Comparison) -> tuple[str, str]:
    accelerated = f"{request.name} {result.fast.seconds:.1f} s, {result.speed_up:.1f}x"
    return f"plain {result.plain.seconds:.1f} s", accelerated


def _report(request: Request, result: _Comparison, as_json: bool) -> None:
    from unicp.cli import common
    from unicp.reporting.summary import align

    summary, fidelity = result.summary, result.fidelity
    if as_json:
        common.print_json(_facts(request, result))
        return
    if result.plan is not None:
        typer.echo(result.plan.text() + "\n")
    if summary is not None:
        typer.echo(summary.text() + "\n")
    counted = None if summary is None else summary.operations_saved
    saved = "not counted" if counted is None else f"{counted:.2f}x less"
    rows = [
        ("plain", f"{result.plain.seconds:.2f} s"),
        (request.name, f"{result.fast.seconds:.2f} s, {result.speed_up:.2f}x as fast"),
        ("compute", saved),
        ("PSNR", f"{_decibels(fidelity.total)}, worst frame {_decibels(fidelity.worst)}"),
        ("video", str(request.out)),
    ]
    for line in align(rows):
        typer.echo(line)


def _facts(request: Request, result: _Comparison) -> dict[str, Any]:
    from unicp.cli import common

    count, height, width, _ = result.plain.frames.shape
    return {
        "prompt": request.prompt,
        "preset": request.preset,
        "tolerance": request.tolerance,
        **common.plan_facts(request, result.plan),
        "seed": request.seed,
        "steps": result.prepared.steps,
        "sampler": type(result.prepared.pipe.scheduler).__name__,
        "out": str(request.out),
        "trace": None if request.trace is None else str(request.trace),
        "frames": count,
        "height": height,
        "width": width,
        "fps": result.prepared.fps,
        "plain_seconds": result.plain.seconds,
        "seconds": result.fast.seconds,
        "speed_up": result.speed_up,
        "operations_saved": None if result.summary is None else result.summary.operations_saved,
        "psnr": result.fidelity.total,
        "worst_frame_psnr": result.fidelity.worst,
        "summary": None if result.summary is None else result.summary.to_dict(),
    }


def _decibels(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.1f} dB"
