"""`unicp calibrate`: measures a profile of a model on this machine, from which plans are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unicp.cli import options
from unicp.cli.options import OFF, Request
from unicp.cli.plugins import shipped_pipeline
from unicp.errors import InputError
from unicp.planning.solver import check_steps

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="A folder, a name on the hub, or a test-bed [default: glyphs]."),
]
PromptsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Prompts, one a line [default: those of the test-bed].")
]
ThoroughOption = Annotated[
    bool, typer.Option("--thorough", help="Spend the time of 20 clips on 8 prompts, for tighter bounds.")
]
ProfileOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The profile to write.")]


def calibrate(
    model: ModelArgument = None,
    prompts: PromptsOption = None,
    thorough: ThoroughOption = False,
    out: ProfileOption = Path("profile.json"),
    steps: options.StepsOption = None,
    cfg: options.CfgOption = None,
    height: options.HeightOption = None,
    width: options.WidthOption = None,
    frames: options.FramesOption = None,
    sampler: options.SamplerOption = "default",
) -> None:
    """Measure the profile of a model, from which plans are made.

    It takes as long as 6 clips: plain runs of 3 prompts, and plans tried on them. If it is stopped, the same command
    continues. A profile belongs to one model, sampler and precision. It holds for other prompts, seeds and step counts;
    its seconds hold for its size only.

    \b
    Examples:
      unicp calibrate --frames 9 --out testbed.json
      unicp calibrate ./my-pipeline --prompts prompts.txt --steps 40 --out mine.json
    """
    texts = calibration_prompts(prompts, model)
    if steps is not None:
        check_steps(steps)
    request = Request(
        prompt=texts[0],
        model=model,
        preset=OFF,
        tolerance=None,
        steps=steps,
        seed=0,
        cfg=cfg,
        height=height,
        width=width,
        frames=frames,
        negative=None,
        out=None,
        fps=None,
        trace=None,
        sampler=sampler,
    )
    from unicp.calibration.checkpoint_log import SUFFIX

    options.check_written("--out", out, {"--prompts": prompts})
    # The log of results is kept beside it, under a longer name.
    options.check_written("--out", out.with_name(out.name + SUFFIX), {"--prompts": prompts})
    _run(request, texts, out, thorough)


def _run(request: Request, prompts: list[str], out: Path, thorough: bool) -> None:
    from unicp.calibration.calibrating import QUICK, THOROUGH, Calibration
    from unicp.calibration.clip_maker import of_pipeline
    from unicp.cli import common

    prepared = common.prepare(request)
    if prepared.steps is None:
        raise InputError("to calibrate", "a pipeline that does not say how many steps it takes", "give --steps")
    check_steps(prepared.steps)
    left_out = ("prompt", "num_inference_steps")
    arguments: dict[str, Any] = {k: v for k, v in prepared.arguments.items() if k not in left_out}
    maker = of_pipeline(prepared.pipe, prepared.steps, arguments)
    calibration = Calibration(maker, prompts, out, common.say, THOROUGH if thorough else QUICK)
    asked, used = f"{calibration.runs} runs of {prepared.steps} steps", len(calibration.prompts)
    common.say(f"{used} prompts, {asked}: as long as {calibration.clips:.1f} plain clips; can be stopped and resumed")
    profile = calibration.run()
    cost = profile.seconds
    typer.echo(f"{out}: {profile.prompts} prompts, {profile.steps} steps, {profile.fingerprint.scheduler}")
    typer.echo(f"seconds: {cost.full:.3g} a full step, {cost.skipped:.3g} a skipped one, {cost.rest:.3g} the rest")
    typer.echo(f'next: unicp plan {out} --target "psnr>=35"')


def calibration_prompts(file: Path | None, model: str | None) -> list[str]:
    """The prompts of a file, or else of a test-bed: of the model if it is one, or of the default one."""
    if file is None:
        testbed = (model and shipped_pipeline(model)) or shipped_pipeline(options.DEFAULT_MODEL)
        if testbed is None:
            raise InputError(
                "to calibrate without --prompts", options.NO_TESTBEDS, f"give --prompts, or {options.GET_TESTBEDS}"
            )
        return list(testbed.prompts("calibration"))
    return list(options.read_prompts("--prompts", file))
