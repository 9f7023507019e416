"""`unicp generate`: one video from a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from unicp.cli import options
from unicp.cli.options import Request


def generate(
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
    out: options.OutOption = Path("unicp.mp4"),
    fps: options.FpsOption = None,
    trace: options.TraceOption = None,
    sampler: options.SamplerOption = "default",
    as_json: options.JsonOption = False,
) -> None:
    """Make one accelerated video, and print what was saved.

    \b
    Examples:
      unicp generate "a red star moving left on a striped background"
      unicp generate "a cat" --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --preset fast
      unicp generate "a cat" --model ./my-pipeline --steps 50 --trace cat.json --json
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
    )
    _report(request, _run(request), as_json)


def _run(request: Request) -> dict[str, Any]:
    from unicp.cli import common

    prepared = common.prepare(request)
    made = common.generate_enabled(prepared, request, f"generating ({request.name})")
    common.write(made.video.frames, request, prepared, made)
    return {"prepared": prepared, "video": made.video, "summary": made.summary, "plan": made.plan}


def _report(request: Request, result: dict[str, Any], as_json: bool) -> None:
    from unicp.cli import common

    video, summary, prepared = result["video"], result["summary"], result["prepared"]
    count, height, width, _ = video.frames.shape
    if as_json:
        facts = {
            "prompt": request.prompt,
            "preset": request.preset,
            "tolerance": request.tolerance,
            **common.plan_facts(request, result["plan"]),
            "seed": request.seed,
            "steps": prepared.steps,
            "sampler": type(prepared.pipe.scheduler).__name__,
            "out": str(request.out),
            "trace": None if request.trace is None else str(request.trace),
            "frames": count,
            "height": height,
            "width": width,
            "fps": prepared.fps,
            "seconds": video.seconds,
            "summary": None if summary is None else summary.to_dict(),
        }
        common.print_json(facts)
        return
    if result["plan"] is not None:
        typer.echo(result["plan"].text() + "\n")
    if summary is not None:
        typer.echo(summary.text() + "\n")
    typer.echo(f"{request.out}: {count} frames of {width} x {height} in {video.seconds:.1f} s")
