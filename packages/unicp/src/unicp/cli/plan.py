"""`unicp plan`: the plan for a target by a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unicp.cli import options
from unicp.errors import InputError

ProfileArgument = Annotated[Path, typer.Argument(metavar="PROFILE", help="A profile that `unicp calibrate` wrote.")]
TargetOption = Annotated[
    str,
    typer.Option(
        metavar="TARGET", help='What to reach: "psnr>=35", "speedup>=2" or "seconds<=40".', show_default=False
    ),
]
StepsOption = Annotated[int | None, typer.Option(metavar="N", help="Steps of the run [default: the profile's].")]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the plan (JSON).")]


def plan(
    profile: ProfileArgument,
    target: TargetOption,
    steps: StepsOption = None,
    out: OutOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show the plan that meets a target.

    It draws the plan, and predicts its speed and fidelity. A run with --target and --profile solves its own plan for
    its own noise levels. With another number of steps than the profile's, the noise levels used here are interpolated.

    \b
    Examples:
      unicp plan profile.json --target "psnr>=35"
      unicp plan profile.json --target "speedup>=2" --steps 50 --out plan.json
    """
    from unicp.planning.plan import save_plan
    from unicp.planning.profile import load_profile
    from unicp.planning.solver import check_steps, plan_of_profile
    from unicp.planning.targets import parse_target

    wanted = parse_target(target)
    if steps is not None:
        if steps < 1:
            raise InputError(f"--steps {steps}", "not a positive number", "use 1 or more")
        check_steps(steps)
    known = load_profile(profile)
    if out is not None:
        options.check_written("--out", out, {"PROFILE": profile})
    made = plan_of_profile(known, wanted, steps or known.steps)
    if out is not None:
        save_plan(made, out)
    if as_json:
        from unicp.cli import common

        common.print_json({**made.facts(), "out": None if out is None else str(out)})
        return
    typer.echo(made.text())
