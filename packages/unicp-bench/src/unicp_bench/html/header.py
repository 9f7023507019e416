"""The top of the report: what was measured, on what, and how to read it."""

from __future__ import annotations

from collections.abc import Sequence

from unicp_bench.html.markup import counted, escape, listed, tag, text_tag
from unicp_bench.html.parts import LEAST_PAIRS, Part
from unicp_bench.rows import Row
from unicp_bench.statistics import FEWEST_FOR_INTERVAL
from unicp_testbeds import NAMES

NOTES = (
    "PSNR compares each clip with the clip of the same prompt and seed that the same pipeline makes without any "
    "acceleration. It says how little a method changes, not how good the clip looks. Equal clips count as 100 dB.",
    "Less compute means fewer operations in the transformer, counted for every method in the same way: 2x less compute "
    "is half of them. It is not time: what is not the transformer takes as long as before.",
    "Seconds are those of the whole pipeline call. Only settings whose every run has a plain run of its own right "
    "before it show them, since a machine's speed changes from run to run. Seconds of other machines differ.",
    "Each part below (a model, sampler, number of steps and length) has clips of its own, the same for all its "
    "settings. Numbers of two parts are not to be compared.",
    "The worst clip is the one with the lowest PSNR; of more than ten clips it is the mean of the lowest tenth.",
    "A setting that could not run is listed with the reason. A number that some clip of a setting lacks is shown as –.",
)
_FIRST = ("device", "dtype", "threads", "commit")


def title(parts: Sequence[Part]) -> str:
    """The title of the page, plain text."""
    models = listed(dict.fromkeys(part.model for part in parts))
    return f"UniCP beside other accelerators: {models}"


def header(rows: Sequence[Row], parts: Sequence[Part], contents: str) -> str:
    """Title, facts, links to the sections (HTML), notes and prompts."""
    top = text_tag("h1", title(parts)) + _lead(rows, parts) + _facts(rows, parts) + contents
    return tag("header", top) + _notes(rows, parts)


def _lead(rows: Sequence[Row], parts: Sequence[Part]) -> str:
    families = dict.fromkeys(family for part in parts for family in part.families)
    settings = len({group.name for part in parts for group in part.groups})
    prompts = len({row.prompt for row in rows})
    kinds = f"{len(families)} method {'family' if len(families) == 1 else 'families'}"
    apart = f" in {counted(len(parts), 'part')} with clips of their own" if len(parts) > 1 else ""
    text = (
        f"{counted(settings, 'setting')} of {kinds} on {counted(prompts, 'prompt')}{apart}, "
        f"{counted(len(rows), 'row')} in all: how much compute each saves, and how far its clips move from those of "
        "the plain run."
    )
    return text_tag("p", text, class_="lead")


def _facts(rows: Sequence[Row], parts: Sequence[Part]) -> str:
    plain = [part.plain.rows[0] for part in parts if part.plain]
    facts = {
        "model": listed(dict.fromkeys(part.model for part in parts)),
        "sampler": listed(dict.fromkeys(part.sampler for part in parts)),
        "steps": listed(dict.fromkeys(row.steps for row in plain)) or "unknown, no plain run in these rows",
        "prompts": str(len({row.prompt for row in rows})),
        "seeds per prompt": _seeds_per_prompt(rows),
        "suites": listed(dict.fromkeys(row.suite for row in rows)),
    }
    seen = {name: None for row in rows for name in row.environment}
    names = [name for name in _FIRST if name in seen] + sorted(name for name in seen if name not in _FIRST)
    for name in names:
        values = dict.fromkeys(str(row.environment[name]) for row in rows if name in row.environment)
        facts[name] = listed(values)
    items = "".join(tag("div", text_tag("dt", name) + text_tag("dd", value)) for name, value in facts.items())
    return tag("dl", items, class_="facts")


def _seeds_per_prompt(rows: Sequence[Row]) -> str:
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.prompt, set()).add(row.seed)
    counts = sorted({len(found) for found in seeds.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _notes(rows: Sequence[Row], parts: Sequence[Part]) -> str:
    items = "".join(text_tag("li", note) for note in [*NOTES, *warnings(rows, parts)])
    prompts = "".join(text_tag("li", prompt) for prompt in dict.fromkeys(row.prompt for row in rows))
    details = tag("details", tag("summary", escape("All prompts")) + tag("ol", prompts, class_="prompts"))
    return tag("section", text_tag("h2", "How to read it") + tag("ul", items, class_="notes") + details)


def warnings(rows: Sequence[Row], parts: Sequence[Part]) -> list[str]:
    """What makes these rows less comparable than they look."""
    found = []
    for part in parts:
        if part.shared.note:
            found.append(f"{part.name}: {part.shared.note}")
        if part.groups and part.clips < FEWEST_FOR_INTERVAL:
            found.append(
                f"{part.name}: only {counted(part.clips, 'clip')} per setting, too few to tell small differences from "
                "chance."
            )
        if part.groups and not part.timed:
            found.append(
                f"{part.name}: no figure or comparison in seconds, because no setting has {LEAST_PAIRS} pairs of a "
                "plain and an accelerated run made one right after the other (unicp bench seconds makes them)."
            )
        if part.plain is None:
            found.append(f"{part.name}: the plain run has no row here.")
    tuned = [name for name in dict.fromkeys(part.model for part in parts) if name in NAMES]
    if tuned:
        found.append(
            f"UniCP's constants were chosen on the test-beds {listed(NAMES)}, though on other prompts. On a model that "
            "it was not tuned on, its lead over other methods can be smaller or gone: measure yours with unicp bench "
            "peers --model."
        )
    devices = {str(row.environment["device"]) for row in rows if "device" in row.environment}
    if len(devices) > 1:
        found.append("The rows come from different devices, listed above.")
    if any("+" in str(row.environment.get("commit", "")) for row in rows):
        found.append("A commit with + stands for a working tree with changes that are not in that commit.")
    return found
