"""Which run, step and branch a call belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, PNDMScheduler

from tests.fake_models import flow_scheduler, noise
from unicp.models.noise import read_schedule
from unicp.numerics.noise_levels import NoiseLevel
from unicp.runtime.model_call import CallInputs
from unicp.runtime.run_tracker import MOST_BRANCHES, RunTracker
from unicp.runtime.sample_chain import Link

SAMPLE = torch.zeros(1, 4, 2)
COND, UNCOND = torch.ones(1, 3, 2), torch.zeros(1, 3, 2)


@dataclass
class CacheContext:
    """As diffusers has it since 0.41."""

    name: str
    step_index: int | None = None
    num_inference_steps: int | None = None


class Calls:
    """Follows calls, with a new tracker where one does not go on, and keeps (run, step, branch, fresh)."""

    def __init__(self, **known: Any):
        self.known, self.tracker = known, RunTracker(**known)
        self.run = -1
        self.found: list[tuple[int, int, str, bool]] = []

    def __call__(
        self,
        timestep: Any,
        text: Any = None,
        context: Any = None,
        sample: Any = SAMPLE,
        kind: Any = (),
        more: tuple[Any, ...] = (),
        weights: Any = (),
        **conditions: Any,
    ) -> Any:
        if isinstance(context, str):
            context = CacheContext(context)
        known = ({} if text is None else {"text": text}) | conditions
        call = CallInputs((sample, *more), timestep, text, kind, known, () if text is None else ("text",))
        going = None if self.run < 0 else self.tracker.goes_on(call, context, weights)
        fresh = going is None
        if going is None:
            self.run += 1
            self.tracker = RunTracker(self.run, **self.known, last_index=self.tracker.last_index)
            going = self.tracker.goes_on(call, context, weights)
        assert going is not None
        place = self.tracker.take(call, going)
        self.found.append((place.run, place.step, place.branch, fresh))
        return place, fresh

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
    assert not call.tracker.conditions_unchanged
    for timestep in (800, 700):
        call(timestep, COND.clone(), context)
        assert call.tracker.conditions_unchanged
    assert call.runs == [0, 0, 0]


@pytest.mark.parametrize("inference", [False, True])
def test_text_written_to_in_place_is_detected(inference):
    with torch.inference_mode(inference):
        call, text = Calls(), torch.ones(1, 3, 2)
        call(900, text)
        call(800, text)
        assert call.tracker.conditions_unchanged
        text.mul_(2)
        call(700, text)
    assert call.runs == [0, 0, 1]
    assert not call.tracker.conditions_unchanged


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
    assert call.tracker.conditions_unchanged
    call(800, COND)
    assert call.found[-1][2] == "call1"
    assert not call.tracker.conditions_unchanged


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
        place, _ = call(timestep, COND)
        assert place.timestep == value
    assert [(run, step) for run, step, _, _ in call.found] == [(0, 0), (0, 1)]


@pytest.mark.parametrize("timestep", [900, 900.0, torch.tensor(900), torch.tensor([900.0, 900.0])])
def test_timesteps_may_be_numbers_or_tensors(timestep):
    assert Calls()(timestep)[0].timestep == 900.0


def test_step_and_steps_come_from_the_schedule():
    scheduler: Any = flow_scheduler(5)
    call = Calls(schedule=read_schedule(scheduler))
    # The first two steps are left out, as image-to-image pipelines do.
    places = [call(timestep)[0] for timestep in scheduler.timesteps[2:]]
    assert [place.step for place in places] == [2, 3, 4]
    assert [place.steps for place in places] == [5, 5, 5]
    assert [place.sigma for place in places] == pytest.approx([0.6, 0.4, 0.2])
    angles = [NoiseLevel(1 - sigma, sigma).angle for sigma in (0.6, 0.4, 0.2, 0.0)]
    assert [place.width for place in places] == pytest.approx([5 * (a - b) for a, b in zip(angles, angles[1:])])


def test_without_a_schedule_steps_are_counted_and_levels_unknown():
    call = Calls()
    places = [call(timestep)[0] for timestep in (900, 700, 100)]
    assert [(place.step, place.steps, place.sigma) for place in places] == [(i, None, None) for i in range(3)]
    assert [place.width for place in places] == [None] * 3


def test_step_index_of_the_context_is_believed():
    place, _ = Calls()(900, COND, CacheContext("cond", step_index=7, num_inference_steps=12))
    assert (place.step, place.steps) == (7, 12)


def test_samples_are_the_batch_size():
    assert Calls()(900, sample=torch.zeros(3, 2))[0].samples == 3


def test_timesteps_that_rise_are_turned_round_first():
    call = Calls(timestep_scale=-1.0, timestep_shift=1000.0)
    places = [call(timestep)[0] for timestep in (0.0, 0.0, 250.0, torch.tensor([600.0]), 0.0)]
    assert call.found == [
        (0, 0, "call0", True),
        (0, 0, "call1", False),
        (0, 1, "call0", False),
        (0, 2, "call0", False),
        (1, 0, "call0", True),
    ]
    assert [place.timestep for place in places] == [1000.0, 1000.0, 750.0, 400.0, 1000.0]


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
        call = Calls(schedule=schedule)
        for factor in (2.0, 1.5, 1.0):
            call(timestep * factor)
        assert call.runs == runs


def test_a_call_after_one_with_several_noise_levels_goes_on_with_its_run():
    call = Calls(schedule=read_schedule(flow_scheduler(5)))
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
    call = Calls()

    def enter(timestep: float, audio: int = 5, weights: object = ()) -> bool:
        return call(timestep, COND, more=(torch.zeros(1, audio),), weights=weights)[1]

    assert [enter(900), enter(800), enter(700, audio=6), enter(600, audio=6)] == [True, False, True, False]
    assert [enter(500, 6, "lora"), enter(400, 6, "lora"), enter(300, 6)] == [True, False, True]


def test_a_timestep_that_is_no_number_is_never_the_next_one():
    call = Calls()
    for timestep in (900.0, float("nan"), 800.0, 700.0):
        call(timestep, COND)
    assert call.runs == [0, 1, 2, 2]


def test_of_several_timesteps_the_noisiest_counts_also_where_they_rise():
    # Given rows are at 1, which is clean.
    rising = Calls(timestep_scale=-1000.0, timestep_shift=1000.0)
    found = [rising(torch.tensor([level, 1.0]), COND)[0] for level in (0.0, 0.3, 0.6)]
    assert [place.step for place in found] == [0, 1, 2] and found[1].timestep == pytest.approx(700.0)


def test_a_loop_that_never_changes_the_timestep_does_not_gather_branches_for_ever():
    call = Calls()
    for place in range(200):
        call(500, torch.full((1, 2), float(place)))
    assert call.tracker.branches <= MOST_BRANCHES < 200 and call.runs[-1] == 3


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
    call = Calls(schedule=read_schedule(scheduler), scheduler=scheduler)
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
    call = Calls(schedule=read_schedule(scheduler), scheduler=scheduler)
    for place, timestep in enumerate(timesteps):
        for text in (COND, UNCOND):
            call(timestep, text, None, torch.full((1, 4), 1.0 + place))
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


@pytest.mark.parametrize("changed", ["picture", "poses[0]", "pooled"])
@pytest.mark.parametrize("context", [None, "cond"])
def test_any_other_condition_that_changes_opens_a_new_run(context, changed):
    given = {name: torch.ones(1, 5, 2) for name in ("picture", "poses[0]", "pooled")}
    call = Calls()
    call(900, COND, context, **given)
    call(800, COND, context, **{name: one.clone() for name, one in given.items()})
    assert call.tracker.conditions_unchanged
    call(700, COND, context, **given | {changed: given[changed] + 1e-3})
    call(600, COND, context, **{name: one for name, one in given.items() if name != changed})
    assert call.runs == [0, 0, 1, 2]
    assert not call.tracker.conditions_unchanged


def test_a_scheduler_whose_count_of_steps_falls_begins_another_run():
    scheduler: Any = flow_scheduler(5)
    call = Calls(schedule=read_schedule(scheduler), scheduler=scheduler)
    for index in (0, 1, 2):
        scheduler._step_index = index
        call(scheduler.timesteps[index], COND)
    scheduler._step_index = 1
    call(scheduler.timesteps[3], COND)
    assert call.runs == [0, 0, 0, 1]


def test_a_sample_that_the_sampler_did_not_make_is_of_another_run_and_an_edited_one_is_told():
    call = Calls()
    sample = noise(0, 1, 40)
    call(900, COND, sample=sample)
    call.tracker.chain.made(sample * 0.9)
    # As models get it: scaled, in half precision, twice, or with a condition beside it.
    call(800, COND, sample=(sample * 0.7).bfloat16().float())
    assert call.runs == [0, 0]
    made = sample * 0.8
    call.tracker.chain.made(made)
    edit = made + 0.03 * made.norm() / 40**0.5 * noise(1, 1, 40)
    going = call.tracker.goes_on(CallInputs((edit,), 700, COND, (), {"text": COND}), None)
    assert going is not None and going.link is Link.EDITED
    call(700, COND, sample=noise(2, 1, 40))
    assert call.runs == [0, 0, 1]


def test_where_no_sampler_is_seen_steps_of_first_order_go_on_and_other_noise_does_not():
    call, sample, output = Calls(), noise(0, 1, 60), noise(1, 1, 60)
    call(1000, COND, sample=sample)
    call.tracker.chain.answered("call0", output)
    call(500, COND, sample=0.8 * sample - 0.5 * output)  # a long step: the sample turns by half a right angle
    assert call.runs == [0, 0]
    call.tracker.chain.answered("call0", output)
    call(250, COND, sample=noise(2, 1, 60))
    assert call.runs == [0, 0, 1]
