"""`unicp bench`: measures methods on the same model, prompts, seeds and machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unicp.cli import options
from unicp.cli.loading import SAMPLERS, check_model
from unicp.errors import InputError
from unicp.files import check_appendable, check_writable, read_json

if TYPE_CHECKING:
    from unicp_bench.sweep import Sweep


def bench(
    context: typer.Context,
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="Methods: presets, quick, transfer, peers, rivals, leaders, ablation, paper, slices, seconds "
            "or overhead.",
        ),
    ] = "quick",
    model: Annotated[
        str, typer.Option(metavar="NAME_OR_PATH", help="A test-bed, or the folder of a pipeline.")
    ] = "glyphs",
    sampler: options.SamplerOption = "default",
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of the reference.")] = 30,
    prompts: Annotated[int | None, typer.Option(metavar="N", help="How many prompts [default: the suite's].")] = None,
    seeds: Annotated[int | None, typer.Option(metavar="N", help="Seeds per prompt [default: the suite's].")] = None,
    frames: options.FramesOption = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Prompts: table, tuning or calibration.")] = "table",
    prompts_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your prompts, one a line, instead of the test-bed's.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Measure only this method (repeat for more): a name of the suite, a preset, or policy:NAME.",
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="MODULE_OR_FILE",
            help="Import this first (repeat for more). What it registers is a method: policy:NAME, predictor:NAME, "
            "reducer:NAME.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File of rows, as JSON lines [default: build/bench/SUITE-MODEL.jsonl]."),
    ] = None,
    clips: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Also keep every clip as a video.")] = None,
    profile: options.ProfileOption = None,
    fast_metrics: Annotated[
        bool, typer.Option("--fast-metrics", help="Leave out the slower metrics (VMAF, deep features).")
    ] = False,
) -> None:
    """Measure methods against the plain run of the same seed.

    It measures compute, seconds, memory and fidelity. If it is stopped, the same command continues. It ends with a
    table. The suite "overhead" measures what deciding costs as models and runs grow, and takes no option but --out.

    \b
    Examples:
      unicp bench quick
      unicp bench peers --sampler euler --out peers.jsonl
      unicp bench presets --method balanced --method "fewer steps 15" --prompts 2 --seeds 1
      unicp bench presets --method 'balanced {"tolerance": 0.1}' --split tuning --prompts 4
      unicp bench quick --plugin my_rule.py --method balanced --method policy:my_rule
    """
    if suite == "overhead":
        return _overhead(out, is_alone=_given(context) <= {"suite", "out"})
    _check(prompts, seeds, steps, frames, sampler)

    from unicp_bench import suites, sweep
    from unicp_bench.methods import parse_method
    from unicp_bench.plugins import load_plugins

    plugins = load_plugins(plugin or ())
    chosen = suites.suite(suite)
    folder = suites.models().get(model, Path(model))
    check_model(folder)
    name = model if model in suites.models() else _name_of(folder)
    methods = [parse_method(text, list(chosen.methods)) for text in method] if method else list(chosen.methods)
    texts = _prompts_of(split, name, prompts_file)
    plan = sweep.Sweep(
        suite=suite,
        model=name,
        folder=folder,
        sampler=sampler,
        steps=steps,
        prompts=_first(texts, prompts, chosen.prompts),
        seeds=chosen.seeds if seeds is None else seeds,
        methods=tuple(methods),
        out=_place(out, f"{suite}-{name}.jsonl"),
        frames=frames or _usual_frames(chosen.frames, folder),
        metrics=sweep.FAST_METRICS if fast_metrics else sweep.ALL_METRICS,
        clips=clips,
        profile=profile,
        plain_every=chosen.plain_every,
        plugins=plugins,
    )
    check_appendable(plan.out)
    _run(plan, chosen.about)


def _given(context: typer.Context) -> set[str]:
    """Names of the parameters that are given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _name_of(folder: Path) -> str:
    """The last part of a model's path, also if that is "." or no text."""
    return (folder.name or folder.resolve().name).encode(errors="backslashreplace").decode()


def _usual_frames(frames: int | None, folder: Path) -> int | None:
    """The frames of the suite, or None if the model makes clips of one length only."""
    config = folder / "transformer" / "config.json"
    values = read_json(config) if config.is_file() else {}
    return None if isinstance(values, dict) and "video_length" in values else frames


def _overhead(out: Path | None, is_alone: bool) -> None:
    if not is_alone:
        raise InputError("unicp bench overhead with these options", "it has its own sizes", "give --out alone")
    file = _place(out, "overhead.json")
    check_writable(file)

    from unicp_bench import overhead

    overhead.measure(file, typer.echo)


def _check(prompts: int | None, seeds: int | None, steps: int, frames: int | None, sampler: str) -> None:
    for flag, value in (("--prompts", prompts), ("--seeds", seeds), ("--steps", steps), ("--frames", frames)):
        if value is not None and value < 1:
            raise InputError(f"{flag} {value}", "not a positive number", "use 1 or more")
    if sampler not in SAMPLERS:
        raise InputError(f"--sampler {sampler!r}", f"known ones {', '.join(SAMPLERS)}", "use one of them")


def _place(out: Path | None, default: str) -> Path:
    rows = out or Path("build/bench") / default
    if out is None:
        options.make_folder("--out", rows.parent)
    return rows


def _run(plan: Sweep, about: str) -> None:
    from unicp.planning.profile import load_profile
    from unicp_bench import sweep
    from unicp_bench.rows import read_rows
    from unicp_bench.statistics import group_rows
    from unicp_bench.tables import measured

    known = read_rows(plan.out)  # a damaged file fails before anything runs
    if plan.profile is not None:
        load_profile(plan.profile)
    if plan.clips is not None:
        options.make_folder("--clips", plan.clips)
    total = len(plan.prompts) * plan.seeds * (len(plan.methods) + 1)
    typer.echo(f"{plan.suite}: {about}; {total} runs, {len(known)} rows already in {plan.out}", err=True)
    conditions = sweep.run(plan, typer.echo)
    mine = [row for row in read_rows(plan.out) if row.conditions == conditions and row.model == plan.model]
    typer.echo(measured(group_rows(mine)))


def _first(texts: tuple[str, ...], asked: int | None, usual: int) -> tuple[str, ...]:
    """The first prompts: as many as were asked for, else up to the usual number."""
    if asked is not None and asked > len(texts):
        raise InputError(f"--prompts {asked}", f"{len(texts)} prompts", "ask for fewer")
    return texts[: usual if asked is None else asked]


def _prompts_of(split: str, model: str, file: Path | None) -> tuple[str, ...]:
    from unicp_testbeds import prompts

    if file is not None:
        return options.read_prompts("--prompts-file", file)
    if split not in prompts.SPLITS:
        raise InputError(f"--split {split!r}", f"the splits {', '.join(prompts.SPLITS)}", "name one of them")
    return prompts.prompts_of(split, model)
