"""Which examples stand out, and how they are shown."""

import numpy as np
import pyarrow as pa
import torch

from ssl_weighting.app.examples import extremes, none_stands_out, on_one_line, pictures
from ssl_weighting.data.source import ExampleSet, InMemory


def table(weight, influence, updates=None, guesses=None):
    return pa.table(
        {
            "pseudo_label": pa.array(guesses or [0] * len(weight), pa.int32()),
            "weight": pa.array(weight, pa.float32()),
            "influence": pa.array(influence, pa.float32()),
            "updates": [1] * len(weight) if updates is None else updates,
        }
    )


def test_weight_decides_then_the_last_influence():
    weights = table([0.0, 2.0, 0.0, 0.5, 2.0], [0.1, -0.1, 0.3, None, -0.2])
    harmful, helpful = extremes(weights, 2, 1.0)
    assert harmful.tolist() == [2, 0]
    assert helpful.tolist() == [4, 1]


def test_no_example_is_in_both_and_none_that_never_moved():
    weights = table([1.0, 0.9, 1.1, 1.0, 1.0], [0.0, 0.1, -0.1, None, 0.1], [1, 1, 1, 0, 1])
    harmful, helpful = extremes(weights, 10, 1.0)
    assert harmful.tolist() == [1, 4]
    assert helpful.tolist() == [2]
    assert [len(found) for found in extremes(table([1.0], [None], [0]), 3, 1.0)] == [0, 0]


def test_where_all_weights_rose_none_did_harm():
    weights = table([0.1, 0.3, 0.2, 0.0], [-0.1, 0.1, -0.2, -0.1], [1, 1, 1, 0])
    harmful, helpful = extremes(weights, 10, 0.0)
    assert harmful.tolist() == []
    assert helpful.tolist() == [1, 2, 0]
    said = none_stands_out("harmful", weights, 0.0)
    assert said == (
        "None did harm: no weight of the 3 that moved lies below the initial 0; they lie from 0.1 to 0.3."
    )


def test_weights_that_began_at_the_lower_bound_can_do_harm():
    harmful, helpful = extremes(table([0.0, 0.0, 0.4], [0.2, 0.3, -0.1]), 10, 0.0)
    assert harmful.tolist() == [1, 0]
    assert helpful.tolist() == [2]


def test_of_one_weight_for_all_the_influence_decides():
    harmful, helpful = extremes(table([1.7] * 3, [0.2, -0.3, 0.3]), 10, 1.0)
    assert harmful.tolist() == [2, 0]
    assert helpful.tolist() == [1]


def test_the_classes_come_in_turn():
    weights = table([0.1, 0.2, 0.3, 0.4, 0.5], [0.0] * 5, guesses=[4, 4, 4, 2, None])
    harmful, _ = extremes(weights, 4, 1.0, spread=True)
    assert harmful.tolist() == [0, 1, 3, 4]
    assert extremes(weights, 4, 1.0)[0].tolist() == [0, 1, 2, 3]


def test_it_agrees_with_sorting_everything():
    numbers = np.random.default_rng(0)
    weight = numbers.integers(0, 5, 1000) / 2
    influence = numbers.normal(size=1000)
    harmful, helpful = extremes(table(weight, influence), 50, 1.0)
    order = sorted(range(1000), key=lambda i: (weight[i], -np.float32(influence[i])))
    assert harmful.tolist() == order[:50]
    assert helpful.tolist() == order[::-1][:50]


class Data:
    def __init__(self, inputs):
        labels = torch.zeros(len(inputs), dtype=torch.int64)
        self.sets = {"unlabeled": ExampleSet(InMemory(inputs, labels), torch.arange(len(inputs)), labels)}

    def prepare(self, raw):
        return raw.float() / 255 if raw.dtype == torch.uint8 else raw


def test_pictures():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    shown = pictures(Data(images), np.array([2, 0]))
    for image, row in zip(shown, (2, 0), strict=True):
        assert (np.asarray(image).transpose(2, 0, 1) == images[row].numpy()).all()
    (large,) = pictures(Data(torch.full((1, 1, 400, 200), 77, dtype=torch.uint8)), np.array([0]))
    assert large.size == (120, 240)
    assert large.getextrema() == (77, 77)
    assert pictures(Data(torch.randn(4, 2)), np.array([0])) is None, "points of the plane are no images"


def test_control_characters_do_not_reach_a_terminal():
    assert on_one_line("a\x1b[31mred\nb\t c\u202e", 20) == "a [31mred b c"
    assert on_one_line("x" * 9, 5) == "xxxx…"
