"""Stored outputs and their byte budget."""

from __future__ import annotations

import pytest
import torch

from unicp.runtime.store import OutputStore
from unicp.settings import Settings

FLOATS = torch.arange(10, dtype=torch.float32)  # 40 bytes


def test_outputs_come_back_oldest_first_and_only_the_last_are_kept():
    store = OutputStore(Settings())
    for number in range(4):
        assert store.put("a", (FLOATS + number,), keep=2, branches=1)
    assert [point[0][0].item() for point in store.get("a")] == [2.0, 3.0]
    assert store.bytes == 80
    assert store.get("b") == []


def test_the_newest_output_can_be_replaced():
    store = OutputStore(Settings(store_dtype="bfloat16"))
    for number in range(2):
        store.put("a", (FLOATS + number,), keep=2, branches=1)
    given = FLOATS + 7
    store.replace_last("a", (given,))
    given.zero_()
    assert [point[0][0].item() for point in store.get("a")] == [0.0, 7.0]
    assert store.held("a")[-1][0].dtype == torch.bfloat16 and store.bytes == 40


def test_tuples_of_tensors_stay_together():
    store = OutputStore(Settings())
    store.put("a", (FLOATS, FLOATS[:3]), keep=1, branches=1)
    assert [tensor.numel() for tensor in store.get("a")[0]] == [10, 3]
    assert store.bytes == 52


@pytest.mark.parametrize(("budget", "fits"), [(80, True), (79, False)])
def test_the_budget_is_exact_to_the_byte(budget, fits):
    store = OutputStore(Settings(store_bytes=budget))
    assert store.put("a", (FLOATS,), keep=2, branches=1)
    assert store.put("b", (FLOATS,), keep=2, branches=1) is fits
    assert store.bytes == (80 if fits else 40)


def test_replacing_an_output_needs_no_more_room():
    store = OutputStore(Settings(store_bytes=40))
    assert store.put("a", (FLOATS,), keep=1, branches=1)
    assert store.put("a", (FLOATS + 1,), keep=1, branches=1)
    assert store.get("a")[0][0][0].item() == 1.0


@pytest.mark.parametrize("key", ["known", "new"])
def test_a_refusal_leaves_the_store_as_it_was(key):
    store = OutputStore(Settings(store_bytes=60))
    store.put("known", (FLOATS,), keep=2, branches=1)
    assert not store.put(key, (FLOATS,), keep=2, branches=1)
    assert (len(store), store.bytes, store.peak_bytes) == (1, 40, 40)
    assert len(store.get("known")) == 1
    assert torch.equal(store.get("known")[0][0], FLOATS)


def test_the_default_budget_follows_the_stream_and_the_branches():
    store = OutputStore(Settings(store_factor=2.5))
    assert store.limit(2) is None
    assert store.put("a", (torch.zeros(10**4),), keep=1, branches=1)
    store.note_stream(FLOATS)
    assert (store.limit(1), store.limit(2), store.limit(0)) == (100, 200, 100)


def test_a_fixed_budget_goes_before_the_default():
    store = OutputStore(Settings(store_bytes=7))
    store.note_stream(FLOATS)
    assert store.limit(3) == 7


def test_stored_outputs_are_copies():
    store, given = OutputStore(Settings()), FLOATS.clone()
    store.put("a", (given,), keep=1, branches=1)
    given.fill_(-1)
    assert torch.equal(store.get("a")[0][0], FLOATS)


def test_a_view_is_stored_without_the_memory_around_it():
    store, large = OutputStore(Settings()), torch.zeros(1000)
    store.put("a", (large[:10],), keep=1, branches=1)
    assert store.get("a")[0][0].untyped_storage().nbytes() == store.bytes == 40


def test_stored_outputs_need_no_gradient():
    store = OutputStore(Settings())
    store.put("a", (FLOATS.clone().requires_grad_() * 2,), keep=1, branches=1)
    assert not store.get("a")[0][0].requires_grad


def test_outputs_are_kept_in_the_dtype_that_was_set_and_given_back_in_that_of_the_model():
    store = OutputStore(Settings(store_dtype="bfloat16"))
    store.put("a", (FLOATS,), keep=1, branches=1)
    assert store.held("a")[0][0].dtype == torch.bfloat16
    assert store.bytes == 20
    assert store.get("a")[0][0].dtype == torch.float32


def test_outputs_are_kept_on_the_device_that_was_set():
    store = OutputStore(Settings(store_device="meta"))
    store.put("a", (FLOATS,), keep=1, branches=1)
    assert store.held("a")[0][0].device.type == "meta"


def test_the_peak_is_remembered():
    store = OutputStore(Settings())
    store.put("a", (FLOATS,), keep=1, branches=1)
    store.put("b", (FLOATS,), keep=1, branches=1)
    store.drop("a")
    assert (store.bytes, store.peak_bytes, len(store)) == (40, 80, 1)
    store.drop("a")
    assert store.bytes == 40


def test_clearing_forgets_everything():
    store = OutputStore(Settings())
    store.put("a", (FLOATS,), keep=1, branches=1)
    store.clear()
    assert (len(store), store.bytes, store.get("a")) == (0, 0, [])
