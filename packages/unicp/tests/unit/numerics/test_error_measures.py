from __future__ import annotations

import math

import pytest
import torch

from unicp.errors import InputError
from unicp.numerics.error_measures import all_finite, coprime_stride, relative_error, strided_sample


def test_relative_error_by_hand_for_each_sample():
    true = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    served = torch.tensor([[3.0, 4.0], [1.0, 3.0]])
    assert torch.allclose(relative_error(served, true), torch.tensor([0.0, math.sqrt(2)]))


def test_relative_error_against_a_scale_of_another_size():
    true = torch.tensor([[1.0, 1.0]])
    scale = torch.full((1, 3, 5), 4.0)
    assert relative_error(true + 1, true, scale).tolist() == pytest.approx([0.25])


def test_relative_error_of_nothing():
    zero, one = torch.zeros(2, 3), torch.zeros(2, 3)
    one[1] = 1.0
    assert relative_error(one, zero).tolist() == [0.0, math.inf]
    assert relative_error(zero, one).tolist() == [0.0, 1.0]


def test_relative_error_keeps_nan():
    x = torch.ones(2, 2)
    broken = x.clone()
    broken[0, 0] = math.nan
    assert relative_error(broken, x).isnan().tolist() == [True, False]
    assert relative_error(x, x, broken).isnan().tolist() == [True, False]


def test_relative_error_of_half_precision_does_not_overflow():
    true = torch.full((1, 4096), 200.0, dtype=torch.float16)
    error = relative_error(true + 100, true)
    assert error.dtype == torch.float32
    assert error.tolist() == pytest.approx([0.5])


def test_relative_error_refuses_wrong_shapes():
    with pytest.raises(InputError):
        relative_error(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InputError):
        relative_error(torch.ones(2, 3), torch.ones(2, 3), torch.ones(1, 3))


def test_strided_sample_takes_every_kth_value():
    x = torch.arange(20.0).reshape(2, 10)
    assert strided_sample(x, 4).tolist() == [[0, 3, 6, 9], [10, 13, 16, 19]]
    assert torch.equal(strided_sample(x, 10), x)


@pytest.mark.parametrize("count", [1, 7, 100, 10_000])
def test_strided_sample_is_the_same_in_any_memory_layout(count: int):
    x = torch.arange(2 * 6 * 8 * 10.0).reshape(2, 6, 8, 10)
    permuted = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not permuted.is_contiguous()
    sample = strided_sample(x, count)
    assert sample.shape[1] <= count
    assert torch.equal(strided_sample(permuted, count), sample)


def test_strided_sample_sees_all_channels():
    x = torch.arange(16.0).expand(1, 64, 16).contiguous()
    assert strided_sample(x, 64).unique().numel() == 16


def test_strided_sample_holds_only_its_own_memory():
    x = torch.zeros(2, 1000)
    assert strided_sample(x, 10).untyped_storage().nbytes() < x.untyped_storage().nbytes() // 10
    full = strided_sample(x, 1000)
    x += 1
    assert full.sum() == 0


def test_sampling_refuses_what_cannot_be_sampled():
    assert strided_sample(torch.arange(3.0), 5).shape == (3, 1)
    with pytest.raises(InputError):
        strided_sample(torch.tensor(1.0), 4)
    with pytest.raises(InputError):
        strided_sample(torch.ones(2, 3), 0)


@pytest.mark.parametrize("length", [1, 2, 30, 97, 1024, 32760])
@pytest.mark.parametrize("count", [1, 5, 32, 2048])
def test_coprime_stride(length: int, count: int):
    stride = coprime_stride(length, count)
    assert math.ceil(length / stride) <= count
    assert math.gcd(stride, length) == 1


def test_all_finite():
    assert bool(all_finite(torch.ones(2, 3)))
    assert not bool(all_finite(torch.tensor([1.0, math.inf])))
    assert not bool(all_finite(torch.tensor([math.nan])))
    assert all_finite(torch.ones(2)).shape == ()
