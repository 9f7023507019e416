"""Which run, step and branch a call belongs to."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, PNDMScheduler

from tests.fake_models import flow_scheduler
from unicp.execution.trajectory import MOST_BRANCHES, Trajectory
from unicp.models.noise import read_schedule
from unicp.numerics.noise_levels import NoiseLevel

SAMPLE = torch.zeros(1, 4, 2)
COND, UNCOND = torch.ones(1, 3, 2), torch.zeros(1, 3, 2)


@dataclass
class CacheContext:
    """As diffusers has it since 0.41."""

    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None


class Calls:
    """Enters calls and keeps what came of them as (run, step, branch, fresh)."""

    def __init__(self, trajectory: Trajectory | None = None):
        self.trajectory = Trajectory() if trajectory is None else trajectory
        self.found: list[tuple[int, int, str, bool]] = []

    def __call__(
        self, timestep: Any, text: Any = None, context: Any = None, sample: Any = SAMPLE, kind: Any = ()
    ) -> Any:
        if isinstance(context, str):
            context = CacheContext(context)
        moment, fresh = self.trajectory.enter(sample, timestep, text, context, kind=kind)
        self.found.append((moment.run, moment.step, moment.branch, fresh))
        return moment, fresh

    @property
    def runs(self) -> list[int]:
        return [run for run, *_ in self.found]


def test_branches_take_their_names_from_the_cache_context():
    call = Calls()
    for timestep in (900, 800):
        call(timestep, COND, "cond")
        call(timestep, UNCOND, "uncond")
    assert call.found == [
        (0, 0, "cond", True),
        (0, 0, "uncond", False),
        (0, 1, "cond", False),
        (0, 1, "uncond", False),
    ]


def test_without_a_context_branches_are_told_by_the_order_of_calls():
    call = Calls()
    for timestep in (900, 800, 700):
        call(timestep, COND)
        call(timestep, UNCOND)
    assert [(step, branch) for _, step, branch, _ in call.found] == [
        (step, branch) for step in range(3) for branch in ("call0", "call1")
    ]
    assert [fresh for *_, fresh in call.found] == [True] + [False] * 5


def test_three_branches_are_told_apart_without_a_context():
    call = Calls()
    for timestep in (900, 800):
        for text in (COND, UNCOND, COND + 1):
            call(timestep, text)
    assert [branch for _, _, branch, _ in call.found] == ["call0", "call1", "call2"] * 2


def test_a_rising_timestep_opens_a_new_run():
    call = Calls()
    for timestep in (900, 800, 900, 800):
        call(timestep, COND)
    assert call.runs == [0, 0, 1, 1]
    assert [step for _, step, _, _ in call.found] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "changed", [torch.zeros(2, 4, 2), torch.zeros(1, 4, 3), torch.zeros(1, 4, 2, dtype=torch.float64)]
)
def test_a_changed_batch_shape_or_dtype_opens_a_new_run(changed):
    call = Calls()
    call(900)
    call(800, sample=changed)
    call(700, sample=changed)
    assert call.runs == [0, 1, 1]


def test_a_changed_device_opens_a_new_run():
    call = Calls()
    call(900)
    call(800, sample=SAMPLE.to("meta"))
    assert call.runs == [0, 1]


@pytest.mark.parametrize("context", [None, "cond"])
def test_another_text_in_the_same_branch_opens_a_new_run(context):
    call = Calls()
    call(900, COND, context)
    call(800, UNCOND, context)
    assert call.runs == [0, 1]


@pytest.mark.parametrize("context", [None, "cond"])
def test_a_text_of_another_length_opens_a_new_run(context):
    call = Calls()
    call(900, COND, context)
    call(800, COND[:, :2], context)
    assert call.runs == [0, 1]


@pytest.mark.parametrize("context", [None, "cond"])
def test_equal_text_in_a_new_tensor_is_the_same_run_and_known_unchanged(context):
    call = Calls()
    call(900, COND.clone(), context)
    assert not call.trajectory.text_unchanged
    for timestep in (800, 700):
        call(timestep, COND.clone(), context)
        assert call.trajectory.text_unchanged
    assert call.runs == [0, 0, 0]


@pytest.mark.parametrize("inference", [False, True])
def test_text_written_to_in_place_is_detected(inference):
    with torch.inference_mode(inference):
        call, text = Calls(), torch.ones(1, 3, 2)
        call(900, text)
        call(800, text)
        assert call.trajectory.text_unchanged
        text.mul_(2)
        call(700, text)
    assert call.runs == [0, 0, 1]
    assert not call.trajectory.text_unchanged


def test_text_written_to_in_place_after_equal_text_in_another_tensor_is_detected():
    call, text = Calls(), COND.clone()
    call(900, COND.clone())
    call(800, text)
    text.add_(1)
    call(700, text)
    assert call.runs == [0, 0, 1]


def test_a_text_written_to_and_back_is_the_same_run():
    call, text = Calls(), COND.clone()
    call(900, text)
    text.add_(1)
    text.sub_(1)
    call(800, text)
    assert call.runs == [0, 0]


def test_a_branch_seen_for_the_first_time_has_no_known_text():
    call = Calls()
    call(900, COND)
    call(800, COND)
    assert call.trajectory.text_unchanged
    call(800, COND)
    assert call.found[-1][2] == "call1"
    assert not call.trajectory.text_unchanged


def test_another_thread_opens_a_new_run():
    call = Calls()
    call(900, COND)
    other = threading.Thread(target=call, args=(800, COND))
    other.start()
    other.join()
    call(700, COND)
    assert call.runs == [0, 1, 2]


def test_the_same_named_branch_again_at_the_same_timestep_opens_a_new_run():
    call = Calls()
    call(900, COND, "cond")
    call(900, UNCOND, "uncond")
    call(900, COND, "cond")
    assert call.runs == [0, 0, 1]


def test_a_timestep_per_token_counts_as_its_largest():
    call = Calls()
    for value in (900.0, 800.0):
        timestep = torch.full((2, 6), value)
        timestep[:, :3] = 0
        moment, _ = call(timestep, COND)
        assert moment.timestep == value
    assert [(run, step) for run, step, _, _ in call.found] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("timestep", [900, 900.0, torch.tensor(900), torch.tensor([900.0, 900.0])])
def test_timesteps_may_be_numbers_or_tensors(timestep):
    assert Calls()(timestep)[0].timestep == 900.0


def test_step_and_steps_come_from_the_schedule():
    scheduler: Any = flow_scheduler(5)
    call = Calls(Trajectory(read_schedule(scheduler)))
    # The first two steps are left out, as image-to-image pipelines do.
    moments = [call(timestep)[0] for timestep in scheduler.timesteps[2:]]
    assert [moment.step for moment in moments] == [2, 3, 4]
    assert [moment.steps for moment in moments] == [5, 5, 5]
    assert [moment.sigma for moment in moments] == pytest.approx([0.6, 0.4, 0.2])
    angles = [NoiseLevel(1 - sigma, sigma).angle for sigma in (0.6, 0.4, 0.2, 0.0)]
    assert [moment.width for moment in moments] == pytest.approx([5 * (a - b) for a, b in zip(angles, angles[1:])])


def test_without_a_schedule_steps_are_counted_and_levels_unknown():
    call = Calls()
    moments = [call(timestep)[0] for timestep in (900, 700, 100)]
    assert [(moment.step, moment.steps, moment.sigma) for moment in moments] == [(i, None, None) for i in range(3)]
    assert [moment.width for moment in moments] == [None] * 3


def test_step_index_of_the_context_is_believed():
    moment, _ = Calls()(900, COND, CacheContext("cond", step_index=7, num_inference_steps=12))
    assert (moment.step, moment.steps) == (7, 12)


def test_samples_are_the_batch_size():
    assert Calls()(900, sample=torch.zeros(3, 2))[0].samples == 3


def test_after_a_reset_the_next_call_opens_a_run_and_nothing_is_held():
    call = Calls()
    call(900, COND)
    call(800, COND)
    call.trajectory.reset()
    assert call.trajectory.branches == 0
    assert not call.trajectory.text_unchanged
    call(700, COND)
    assert call.found[-1] == (1, 0, "call0", True)
    assert not call.trajectory.text_unchanged


def test_timesteps_that_rise_are_turned_round_first():
    call = Calls(Trajectory(timestep_scale=-1.0, timestep_shift=1000.0))
    moments = [call(timestep)[0] for timestep in (0.0, 0.0, 250.0, torch.tensor([600.0]), 0.0)]
    assert call.found == [
        (0, 0, "call0", True),
        (0, 0, "call1", False),
        (0, 1, "call0", False),
        (0, 2, "call0", False),
        (1, 0, "call0", True),
    ]
    assert [moment.timestep for moment in moments] == [1000.0, 1000.0, 750.0, 400.0, 1000.0]


def test_a_call_with_tokens_at_several_noise_levels_is_a_run_of_its_own():
    known = read_schedule(flow_scheduler(5))
    given, alike = torch.tensor([[0.0, 400.0, 400.0]]), torch.tensor([[400.0, 400.0, 400.0]])
    several = torch.tensor([[0.0, 200.0, 400.0]])
    for timestep, schedule, runs in (
        (given, known, [0, 0, 0]),
        (alike, known, [0, 0, 0]),
        (several, known, [0, 1, 2]),
        (several, None, [0, 0, 0]),
    ):
        call = Calls(Trajectory(schedule=schedule))
        for factor in (2.0, 1.5, 1.0):
            call(timestep * factor)
        assert call.runs == runs


def test_a_call_after_one_with_several_noise_levels_goes_on_with_its_run():
    call = Calls(Trajectory(schedule=read_schedule(flow_scheduler(5))))
    call(torch.tensor([[600.0, 800.0]]))
    call(torch.tensor([[600.0, 600.0]]))
    call(torch.tensor([[400.0, 400.0]]))
    assert call.runs == [0, 0, 0]


@pytest.mark.parametrize("text", [COND, None])
def test_after_a_run_of_one_step_another_sample_with_the_same_text_opens_a_new_run(text):
    # An interrupt after the first step leaves a run at the timestep at which the next one begins.
    call = Calls()
    call(1000, text, sample=torch.zeros(1, 4))
    call(1000, text, sample=torch.ones(1, 4))
    call(900, text, sample=torch.ones(1, 4))
    assert call.runs == [0, 1, 1] and [branch for *_, branch, _ in call.found] == ["call0"] * 3


def test_branches_with_the_same_text_are_told_from_a_new_run_by_their_sample():
    # A negative prompt that is the prompt, or guidance that perturbs the model.
    call = Calls()
    for timestep in (1000, 900, 800):
        sample = torch.full((1, 4), float(timestep))
        call(timestep, COND, sample=sample)
        call(timestep, COND, sample=sample.clone())
    assert call.runs == [0] * 6 and [branch for *_, branch, _ in call.found] == ["call0", "call1"] * 3
    # A sample that was written to in place is another one.
    call = Calls()
    sample = torch.zeros(1, 4)
    call(1000, COND, sample=sample)
    sample += 1
    call(1000, COND, sample=sample.clone())
    assert call.runs == [0, 1]


def test_other_shapes_of_a_second_sample_and_other_weights_open_a_new_run():
    trajectory = Trajectory()

    def enter(timestep: float, audio: int = 5, weights: object = ()) -> bool:
        return trajectory.enter(SAMPLE, timestep, COND, None, (torch.zeros(1, audio),), weights)[1]  # type: ignore[arg-type]

    assert [enter(900), enter(800), enter(700, audio=6), enter(600, audio=6)] == [True, False, True, False]
    assert [enter(500, 6, "lora"), enter(400, 6, "lora"), enter(300, 6)] == [True, False, True]


def test_a_timestep_that_is_no_number_is_never_the_next_one():
    call = Calls()
    for timestep in (900.0, float("nan"), 800.0, 700.0):
        call(timestep, COND)
    assert call.runs == [0, 1, 2, 2]


def test_of_several_timesteps_the_noisiest_counts_also_where_they_rise():
    # Given rows are at 1, which is clean.
    rising = Trajectory(timestep_scale=-1000.0, timestep_shift=1000.0)
    found = [rising.enter(SAMPLE, torch.tensor([level, 1.0]), COND, None)[0] for level in (0.0, 0.3, 0.6)]
    assert [moment.step for moment in found] == [0, 1, 2] and found[1].timestep == pytest.approx(700.0)


def test_a_loop_that_never_changes_the_timestep_does_not_gather_branches_for_ever():
    call = Calls()
    for place in range(200):
        call(500, torch.full((1, 2), float(place)))
    assert call.trajectory.branches <= MOST_BRANCHES < 200 and call.runs[-1] == 3


def test_branches_of_one_step_may_have_batches_of_different_size():
    # LTX-2: both prompts as one batch, then the prompt alone with parts of the model skipped.
    named, counted = Calls(), Calls()
    for timestep in (900, 800, 700):
        sample = torch.full((1, 4), float(timestep))
        for call, names in ((named, ("cond_uncond", "perturbed")), (counted, (None, None))):
            call(timestep, COND.expand(2, -1, -1), names[0], sample.expand(2, -1))
            call(timestep, COND, names[1], sample)
    assert named.runs == counted.runs == [0] * 6
    assert [branch for *_, branch, _ in counted.found] == ["call0", "call1"] * 3
    # Not the sample of the step: a run of its own, left after one step at the timestep at which this one begins.
    counted(700, COND, None, torch.zeros(3, 4))
    assert counted.found[-1] == (1, 0, "call0", True)
    fresh = Calls()
    fresh(1000, COND.expand(2, -1, -1), None, torch.ones(2, 4))
    fresh(1000, COND, None, torch.zeros(1, 4))
    assert fresh.runs == [0, 1]


@pytest.mark.parametrize("context", [None, "cond"])
def test_another_batch_in_a_known_branch_opens_a_new_run(context):
    call = Calls()
    for timestep, batch in ((900, 2), (800, 2), (700, 1), (600, 1)):
        call(timestep, None, context, torch.zeros(batch, 4))
    assert call.runs == [0, 0, 1, 1]


@pytest.mark.parametrize("contexts", [(None, None), ("cond", "uncond")])
def test_a_sampler_that_stays_at_a_timestep_takes_a_step_there(contexts):
    scheduler: Any = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(4)
    call = Calls(Trajectory(read_schedule(scheduler), scheduler))
    sample = torch.ones(1, 4)
    for _ in range(2):
        for timestep in scheduler.timesteps:
            call(timestep, COND, contexts[0], sample)
            call(timestep, UNCOND, contexts[1], sample)
            sample = scheduler.step(torch.ones(1, 4), timestep, sample).prev_sample
        scheduler.set_timesteps(4)
    steps = len(scheduler.timesteps)
    assert steps == 7 and call.runs == [0] * 2 * steps + [1] * 2 * steps
    assert [step for _, step, *_ in call.found] == [step for step in range(steps) for _ in range(2)] * 2
    assert len({branch for *_, branch, _ in call.found}) == 2


def test_of_steps_at_one_timestep_the_next_is_meant_where_the_scheduler_does_not_count():
    scheduler: Any = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(5)
    timesteps = scheduler.timesteps.tolist()
    assert timesteps[1] == timesteps[2]
    call = Calls(Trajectory(read_schedule(scheduler), scheduler))
    for place, timestep in enumerate(timesteps):
        for text in (COND, UNCOND):
            call(timestep, text, None, torch.full((1, 4), float(place)))
    # The second step at one timestep cannot be told from a run that begins there, and is computed.
    assert call.runs == [0] * 4 + [1] * (2 * len(timesteps) - 4)
    assert [step for _, step, *_ in call.found] == [step for step in range(len(timesteps)) for _ in range(2)]


@pytest.mark.parametrize(
    ("context", "runs"), [(None, [0, 0, 0, 0, 0, 1, 2, 2, 2, 3]), ("perturbed", [0, 0, 0, 0, 0, 1, 1, 1, 1, 2])]
)
def test_a_call_of_another_kind_in_the_place_of_a_known_one_opens_a_new_run(context, runs):
    # As LTX-2's guidance, where perturbed and separated calls have the text of the call with the prompt.
    call = Calls()
    for timestep, kind in ((900, ("stg",)), (800, ("stg",)), (700, ("apart",)), (600, ("apart",)), (500, ())):
        call(timestep, COND)
        call(timestep, COND, context, kind=kind)
    assert [fresh for *_, fresh in call.found[1::2]] == [False, False, True, False, True]
    assert call.runs == runs
