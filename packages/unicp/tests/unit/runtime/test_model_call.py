"""Arguments and outputs of every form, and calls that are not followed."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from tests import tiny_models
from tests.fake_models import FakeTransformer, noise
from unicp.models.finder import map_model
from unicp.runtime.model_call import CallReader, batched, read_output
from unicp.session import enable
from unicp.settings import preset

VIDEO, AUDIO = noise(0, 2, 3), noise(1, 2, 5)


@dataclass
class VideoAndAudio:
    sample: Tensor
    audio: Tensor | None = None


@pytest.mark.parametrize(
    "output",
    [
        VIDEO,
        (VIDEO,),
        (VIDEO, AUDIO),
        (VIDEO, None),
        (list(VIDEO),),
        VideoAndAudio(VIDEO, AUDIO),
        VideoAndAudio(VIDEO),
        Transformer2DModelOutput(sample=VIDEO),
        Transformer2DModelOutput(sample=list(VIDEO)),  # type: ignore[arg-type]
    ],
)
def test_an_output_is_taken_apart_and_put_together_again(output):
    read = read_output(output)
    assert read is not None
    form, tensors = read
    assert all(map(torch.equal, tensors, (VIDEO, AUDIO)[: len(tensors)]))
    again = form.fill(tuple(2 * tensor for tensor in tensors))
    assert type(again) is type(output)
    back = read_output(again)
    assert back is not None and back[0] == form and torch.equal(back[1][0], 2 * VIDEO)


@pytest.mark.parametrize(
    "output",
    [None, {"sample": VIDEO}, (VIDEO, "cache"), (), (None,), namedtuple("Pair", "a b")(VIDEO, VIDEO), VideoAndAudio],
)
def test_an_output_that_holds_anything_else_is_not_read(output):
    assert read_output(output) is None


def test_lists_of_one_tensor_per_sample_become_one_unless_they_differ():
    assert torch.equal(batched(list(VIDEO)), VIDEO)  # type: ignore[arg-type]
    assert batched([VIDEO, AUDIO]) is None and batched([]) is None and batched("text") is None
    assert batched([VIDEO, VIDEO.double()]) is None


def test_the_text_of_a_call_is_one_tensor_by_which_it_is_known_again():
    reader = CallReader(map_model(tiny_models.shared("z_image")))
    one, two = noise(1, 4, 3), noise(2, 6, 3)
    sample = [noise(0, 4, 1, 8, 8), noise(1, 4, 1, 8, 8)]

    def read(texts: object) -> Tensor | None:
        return reader.read((sample, torch.ones(2), texts), {}).text

    assert read([one]) is one and read([]) is None
    both, turned = read([one, two]), read([two, one])
    assert both is not None and turned is not None and not torch.equal(both, turned)
    assert reader.read((sample, torch.ones(2), [one, two]), {}).samples[0].shape == (2, 4, 1, 8, 8)


def test_samples_of_several_sizes_and_empty_batches_are_computed_and_said():
    model = tiny_models.shared("z_image")
    given = tiny_models.own("z_image", tiny_models.inputs("z_image", batch=2))
    with enable(model, preset("fast", full_every=3, first=1)) as session, torch.no_grad():
        for step in range(6):
            # One picture is half as wide.
            odd = [given["x"][0], given["x"][1][..., :4]]
            output = model(**given | {"x": odd, "t": given["t"] + 0.01 * step})[0]
            assert [one.shape for one in output] == [one.shape for one in odd]
    assert not session.trace.entries and "several sizes" in session.trace.warnings[0]
    transformer = FakeTransformer()
    with enable(transformer, preset("fast")) as session:
        for step in range(6):
            assert transformer(torch.zeros(0, 4), torch.tensor([900.0 - step]))[0].shape == (0, 4)
    assert len(transformer.computed) == 6 and "without samples" in session.trace.warnings[0]


def test_an_output_that_cannot_be_stored_is_computed_and_said():
    class Odd(FakeTransformer):
        def forward(self, *args, **kwargs):  # type: ignore[override]
            return super().forward(*args, **kwargs)[0].flatten(), "cache"

    transformer = Odd()
    transformer.__class__.__name__ = "Odd"
    with enable(transformer, preset("fast")) as session:
        for step in range(8):
            transformer(hidden_states=noise(0, 1, 4), timestep=torch.tensor([900.0 - step]))
    assert len(transformer.computed) == 8
    assert any("no tensors" in warning for warning in session.trace.warnings)
