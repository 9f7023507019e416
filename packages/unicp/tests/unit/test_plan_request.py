"""`unicp.enable` with a target, on a transformer of known answers: plans followed, guarded, replayed, refused."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

import unicp
from tests.fake_models import FakeTransformer, noise
from tests.made_profiles import CUBE, made
from unicp.errors import FileFormatError, InputError, SettingsError
from unicp.planning.plan import plan_of_trace, save_plan
from unicp.planning.profile import Profile, save_profile
from unicp.session import Session, enable
from unicp.settings import preset

STEPS = 16
CONFIG = "44136fa355b3"  # of a model without a configuration


class Scheduler:
    """Flow matching in Euler steps, on the levels of `made_profiles`."""

    config = {"prediction_type": None}

    def __init__(self) -> None:
        self.set_timesteps(STEPS)

    def set_timesteps(self, steps: int) -> None:
        from tests.made_profiles import flow_levels

        self.num_inference_steps = steps
        self.sigmas = torch.tensor([level.sigma for level in flow_levels(steps)])
        self.timesteps = 1000 * self.sigmas[:-1]

    def step(self, output: Tensor, timestep: Tensor, sample: Tensor, made: Tensor | None = None) -> tuple[Tensor]:
        """Whatever is made up for the next step, or an Euler step."""
        if made is not None:
            return (made,)
        at = int((self.timesteps - timestep).abs().argmin())
        return (sample + (self.sigmas[at + 1] - self.sigmas[at]) * output,)


class FlowMatchMade(Scheduler):
    """Its name says that it is one of flow matching."""


def profile(**changes) -> Profile:
    own = {"model": "WanTransformer3DModel", "config": CONFIG, "dtype": "unknown", "scheduler": "FlowMatchMade"}
    return made(**{**own, **changes})


def sample_at(sigma: float, bend: float) -> tuple[Tensor, Tensor]:
    """(sample, output) at a noise level: the output is a cubic over the log-SNR as that of the profile, and from the
    middle of the run on it wobbles, `bend` times as much as the cubic bends."""
    log_snr = 2 * math.log((1 - sigma) / sigma)
    shape = noise(3, 1, 4, 2, 4, 4).sign()
    wobble = bend * math.sin(9 * log_snr) if log_snr > -3.0 else 0.0
    output = 1.0 + 0.1 * log_snr + CUBE * (log_snr**3 + wobble) * shape
    return noise(4, 1, 4, 2, 4, 4) * sigma, output


def run(transformer, scheduler, bend: float, branches: int = 2, steps: int = STEPS) -> Tensor:
    """All outputs of a run."""
    scheduler.set_timesteps(steps)
    texts = [noise(7 + branch, 1, 3, 2) for branch in range(branches)]
    outputs = []
    sigmas = scheduler.sigmas.tolist()
    for timestep, sigma, after in zip(scheduler.timesteps, sigmas, sigmas[1:]):
        sample, velocity = sample_at(sigma, bend)
        transformer.answer = lambda *_, velocity=velocity: velocity
        outputs += [transformer(sample, timestep.expand(1), encoder_hidden_states=text)[0] for text in texts]
        if after:
            scheduler.step(outputs[-1], timestep, sample, sample_at(after, bend)[0])
    return torch.cat(outputs)


def under(profile_: Profile | None, target: str = "psnr>=35", bend: float = 1.0, branches: int = 2, **options):
    """A run under a target: (final sample, session)."""
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    with enable(transformer, target=target, profile=profile_, scheduler=scheduler, **options) as session:
        return run(transformer, scheduler, bend, branches), session


def computed(session: Session) -> list[int]:
    return sorted({entry.step for entry in session.trace.entries if entry.action == "full"})


def test_a_run_follows_the_plan_of_its_target():
    _, session = under(profile(), "speedup>=1.5")
    plan = session.plan
    assert plan is not None and computed(session) == plan.full and 3 < len(plan.full) < STEPS
    leading = [entry for entry in session.trace.entries if entry.branch == "call0"]
    assert {entry.reason for entry in leading} <= {"first", "plan"}
    assert session.trace.preset == "target speedup>=1.5"
    assert {entry.predictor for entry in session.trace.entries if entry.action == "forecast"} == {str(plan.forecast)}


def test_where_errors_are_larger_than_announced_the_guard_computes_more_and_says_so():
    calm, hard = (under(profile(), "psnr>=35", bend)[1] for bend in (0.5, 40.0))
    plan = hard.plan
    assert plan is not None and calm.plan == plan
    assert computed(calm) == plan.full
    assert set(plan.full) < set(computed(hard))
    assert any("times those before, also computes" in warning for warning in hard.trace.warnings)
    assert "guard" in {entry.reason for entry in hard.trace.entries}
    assert calm.trace.counts["guard"] == 0 < hard.trace.counts["guard"]


def test_nothing_of_a_hard_run_is_remembered_by_the_next():
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    with enable(transformer, target="psnr>=35", profile=profile(), scheduler=scheduler) as session:
        run(transformer, scheduler, 40.0)
        hard = computed(session)
        session.trace.clear()
        run(transformer, scheduler, 0.5)
        assert session.plan is not None and computed(session) == session.plan.full != hard
    assert session.is_empty


def test_the_same_plan_gives_the_same_bits_and_a_trace_replays_them(tmp_path):
    first, session = under(profile(), bend=40.0)
    again, _ = under(profile(), bend=40.0)
    assert torch.equal(first, again)
    session.save_trace(tmp_path / "trace.json")
    save_plan(plan_of_trace(unicp.load_trace(tmp_path / "trace.json")), tmp_path / "plan.json")
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    with enable(transformer, plan=tmp_path / "plan.json", scheduler=scheduler) as replay:
        assert torch.equal(run(transformer, scheduler, 40.0), first)
    assert computed(replay) == computed(session)


def test_a_saved_plan_keeps_its_guard(tmp_path):
    _, session = under(profile(), bend=0.5)
    session.save_plan(tmp_path / "plan.json")
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    with enable(transformer, plan=unicp.load_plan(tmp_path / "plan.json"), scheduler=scheduler) as guarded:
        run(transformer, scheduler, 40.0)
    assert session.plan is not None and set(session.plan.full) < set(computed(guarded))


def test_another_number_of_steps_gets_a_plan_of_its_own():
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    with enable(transformer, target="psnr>=35", profile=profile(), scheduler=scheduler) as session:
        run(transformer, scheduler, 1.0, steps=24)
        assert session.plan is not None and session.plan.steps == 24
        assert session.plan.full == computed(session)


def test_a_profile_from_a_file(tmp_path):
    save_profile(profile(), tmp_path / "profile.json")
    _, session = under(tmp_path / "profile.json")  # type: ignore[arg-type]
    assert session.plan is not None
    (tmp_path / "profile.json").write_text("{")
    with pytest.raises(FileFormatError):
        under(tmp_path / "profile.json")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model": "LatteTransformer3DModel"}, "model WanTransformer3DModel, not LatteTransformer3DModel"),
        ({"config": "1234"}, f"config {CONFIG}, not 1234"),
        ({"dtype": "bfloat16"}, "dtype unknown, not bfloat16"),
        ({"scheduler": "UniPCMultistepScheduler"}, "scheduler FlowMatchMade, not UniPCMultistepScheduler"),
    ],
)
def test_a_profile_of_something_else_is_refused_before_anything_is_changed(change, found):
    transformer, scheduler = FakeTransformer(), FlowMatchMade()
    before = dict(vars(transformer))
    with pytest.raises(InputError) as caught:
        enable(transformer, target="psnr>=35", profile=profile(**change), scheduler=scheduler)
    assert found in str(caught.value) and "unicp calibrate" in str(caught.value)
    assert dict(vars(transformer)) == before


def test_other_guidance_is_planned_as_of_an_unknown_model_with_one_line(caplog):
    with caplog.at_level(logging.WARNING, logger="unicp"):
        _, session = under(profile(), branches=1)
    assert session.plan is not None
    assert sum("2 calls a step and this run makes 1" in warning for warning in session.trace.warnings) == 1
    assert "as if nobody had calibrated" in caplog.text


def test_a_target_without_a_profile_is_a_guess_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="unicp"):
        _, session = under(None)
    assert session.plan is not None and session.plan.steps == STEPS
    assert "a guess, as nobody calibrated this model" in caplog.text and "unicp calibrate" in caplog.text


def test_an_infeasible_target_ends_the_run_with_what_is_feasible():
    with pytest.raises(InputError, match="at most"):
        under(profile(), "speedup>=15")


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"target": "speed>=2"}, InputError, "not a target"),
        ({"profile": "profile.json"}, InputError, "no target"),
        ({"target": "psnr>=35", "plan": "plan.json"}, InputError, "both"),
        ({"target": "psnr>=35", "settings": "paper"}, SettingsError, "level 'unit'"),
        ({"target": "psnr>=35", "settings": preset("balanced", full_every=2)}, SettingsError, "full_every"),
        ({"target": "psnr>=35", "profile": "missing.json"}, InputError, "missing.json"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(options, error, found):
    with pytest.raises(error) as caught:
        enable(FakeTransformer(), scheduler=FlowMatchMade(), **options)
    assert found in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_whose_noise_levels_are_unknown_is_refused():
    with pytest.raises(InputError, match="no scheduler"):
        enable(FakeTransformer(), target="psnr>=35", profile=profile())


def test_a_plan_of_another_model_is_refused():
    _, session = under(profile(model="WanTransformer3DModel"))
    assert session.plan is not None
    other = unicp.Plan(**{**vars(session.plan), "model": "LatteTransformer3DModel"})
    with pytest.raises(InputError, match="one of LatteTransformer3DModel"):
        enable(FakeTransformer(), plan=other, scheduler=FlowMatchMade())
