"""Guidance with a third call in a step: layers skipped, attention perturbed, streams kept apart (SLG, STG, PAG, LTX-2).

Such a call has the text and the sample of the call with the prompt, and hooks of diffusers' guiders come and go
around it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LayerSkipConfig
from diffusers.guiders import PerturbedAttentionGuidance, SkipLayerGuidance
from torch import Tensor

from tests import tiny_models
from tests.families.helpers import EXACT, served
from unicp.session import enable
from unicp.settings import Settings, preset

STEPS = 12
# Perturbed attention only where diffusers itself can do it: it fails on Wan, CogVideoX, LTX and Flux.
CASES = [
    ("skip-layer guidance", "wan"),
    ("skip-layer guidance", "cogvideox"),
    ("skip-layer guidance", "flux"),
    ("perturbed-attention guidance", "latte"),
]
LEVELS = ("model", "stack", "block", "unit")
ROLES = ("self", "spatial", "temporal", "joint", "cross", "feed_forward")
every_case = pytest.mark.parametrize(("kind", "name"), CASES)


def guider(kind: str, start: float, stop: float) -> Any:
    if kind == "skip-layer guidance":
        return SkipLayerGuidance(
            guidance_scale=3.0,
            skip_layer_config=LayerSkipConfig([1]),
            skip_layer_guidance_start=start,
            skip_layer_guidance_stop=stop,
        )
    return PerturbedAttentionGuidance(
        guidance_scale=3.0,
        perturbed_guidance_layers=[1],
        perturbed_guidance_start=start,
        perturbed_guidance_stop=stop,
    )


@torch.no_grad()
def run(model: Any, name: str, guide: Any, only: str = "") -> dict[str, list[Tensor]]:
    """What each kind of call gave along a given path of samples; `only`: leave out all calls but those of this kind."""
    conditions = (tiny_models.inputs(name), tiny_models.inputs(name, seed=1))
    outputs: dict[str, list[Tensor]] = {}
    for step in range(STEPS):
        # Counted from 1: diffusers leaves the third call out of the step at which its window begins.
        guide.set_state(step=step + 1, num_inference_steps=STEPS + 1, timestep=None)
        for batch in guide.prepare_inputs({"place": (0, 1)}):
            kind = batch.__guidance_identifier__
            guide.prepare_models(model)
            if only in ("", kind):
                arguments = conditions[batch.place] | {
                    "hidden_states": conditions[0]["hidden_states"] * (1 - 0.05 * step),
                    "timestep": tiny_models.inputs(name, timestep=1000 * (1 - step / STEPS))["timestep"],
                }
                outputs.setdefault(kind, []).append(tiny_models.first(tiny_models.call(model, name, arguments)))
            guide.cleanup_models(model)
    return outputs


def settings(level: Any, **changes: Any) -> Settings:
    roles = {"roles": ROLES} if level == "unit" else {}
    return preset("balanced", level=level, store_factor=64.0, **roles, **changes)


def same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> bool:
    pairs = [(a, b) for kind in one for a, b in zip(one[kind], other[kind], strict=True)]
    return one.keys() == other.keys() and all(torch.equal(a, b) for a, b in pairs)


def levels_of(name: str) -> tuple[str, ...]:
    return tuple(level for level in LEVELS if level != "stack" or name not in ("flux", "latte"))


@every_case
def test_a_third_call_is_exact_isolated_and_served(kind, name, note):
    model = tiny_models.build(name)
    plain = run(model, name, guider(kind, 0.0, 1.0))
    assert {len(outputs) for outputs in plain.values()} == {STEPS} and len(plain) == 3
    assert not torch.equal(plain["pred_cond"][0], plain["pred_cond_skip"][0])
    for level in levels_of(name):
        with enable(model, settings(level, tolerance=0.0)):
            assert same(run(model, name, guider(kind, 0.0, 1.0)), plain), level
        # Fixed windows: what is served does not depend on the other calls, so each must be as if it were alone.
        fixed = settings(level, tolerance=1.0, full_every=2, damping=False)
        with enable(model, fixed) as session:
            together = run(model, name, guider(kind, 0.0, 1.0))
        assert served(session) and {entry.run for entry in session.trace.entries} == {0}
        for only in plain:
            with enable(model, fixed):
                alone = run(model, name, guider(kind, 0.0, 1.0), only)
            assert all(map(torch.equal, together[only], alone[only])), (level, only)
    assert same(run(model, name, guider(kind, 0.0, 1.0)), plain)
    note(f"{kind} (a third call)", name)


@pytest.mark.parametrize("level", ["model", "block"])
@pytest.mark.parametrize("window", [(0.0, 0.5), (0.25, 0.75)], ids=["stops", "within"])
def test_a_third_call_that_comes_and_goes(window, level):
    model = tiny_models.build("wan")
    plain = run(model, "wan", guider("skip-layer guidance", *window))
    assert len(plain["pred_cond_skip"]) == 5
    with enable(model, settings(level, tolerance=0.0)):
        assert same(run(model, "wan", guider("skip-layer guidance", *window)), plain)
    with enable(model, settings(level, tolerance=0.5, weighting="uniform")) as session:
        output = run(model, "wan", guider("skip-layer guidance", *window))
    actions = {(e.step, e.branch): e.action for e in session.trace.entries if e.point != "model" or level == "model"}
    after = [action for (step, _), action in actions.items() if step >= window[1] * STEPS]
    assert "forecast" in after, "nothing was served once the third call was gone"
    for kind, outputs in plain.items():
        for one, other in zip(output[kind], outputs, strict=True):
            assert float((one - other).norm() / other.norm()) < 0.5


def build_ltx2() -> Any:
    """As LTX-2.3, whose blocks can be perturbed."""
    return tiny_models.build("ltx2", perturbed_attn=True)


@torch.no_grad()
def ltx2(model: Any, kinds: tuple[str, ...], last: str, only: str = "") -> dict[str, list[Tensor]]:
    """LTX-2's calls without a cache_context: with the prompt, perturbed (STG), with video and audio kept apart.

    last: the kind of the third call in the second half of the steps.
    """
    asked: dict[str, dict[str, Any]] = {
        "cond": {},
        "stg": {"spatio_temporal_guidance_blocks": [1]},
        "apart": {"isolate_modalities": True},
    }
    outputs: dict[str, list[Tensor]] = {}
    for step in range(STEPS):
        for kind in (*kinds[:-1], last if step >= STEPS // 2 else kinds[-1]):
            if only in ("", kind):
                given = tiny_models.inputs("ltx2", timestep=1000 * (1 - step / STEPS)) | asked[kind]
                given["hidden_states"] = given["hidden_states"] * (1 - 0.05 * step)
                outputs.setdefault(kind, []).append(model(**given)[0])
    return outputs


@pytest.mark.skipif("ltx2" not in tiny_models.NAMES, reason="this diffusers has no LTX-2")
@pytest.mark.parametrize("level", ["model", "block"])
def test_the_calls_of_ltx2(level, note):
    model = build_ltx2()
    plain = ltx2(model, ("cond", "stg", "apart"), "apart")
    assert not torch.equal(plain["cond"][0], plain["stg"][0]) and not torch.equal(plain["stg"][0], plain["apart"][0])
    with enable(model, settings(level, tolerance=0.0)):
        assert same(ltx2(model, ("cond", "stg", "apart"), "apart"), plain)
    fixed = settings(level, tolerance=1.0, full_every=2, damping=False)
    with enable(model, fixed) as session:
        together = ltx2(model, ("cond", "stg", "apart"), "apart")
    assert served(session) and {entry.run for entry in session.trace.entries} == {0}
    for only in plain:
        with enable(model, fixed):
            alone = ltx2(model, ("cond", "stg", "apart"), "apart", only)
        assert all(map(torch.equal, together[only], alone[only])), only
    note("LTX-2's perturbed and separated calls (STG, modality guidance)", "ltx2")


@pytest.mark.skipif("ltx2" not in tiny_models.NAMES, reason="this diffusers has no LTX-2")
def test_a_perturbed_call_is_not_served_to_a_separated_one_in_its_place():
    # Both have the text and the sample of the call with the prompt: only their arguments tell them apart.
    model = build_ltx2()
    plain = ltx2(model, ("cond", "stg"), "apart")
    reuse = settings("model", tolerance=1.0, predictor="reuse", quantity="output", full_every=9, first=1)
    with enable(model, reuse) as session:
        output = ltx2(model, ("cond", "stg"), "apart")
    assert served(session)
    assert torch.equal(output["apart"][0], plain["apart"][0])
    with enable(model, EXACT):
        assert same(ltx2(model, ("cond", "stg"), "apart"), plain)
