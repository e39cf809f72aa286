"""Λ: gather, sparse update, bounds, state."""

import pytest
import torch

from ssl_weighting.errors import UserError
from ssl_weighting.weighting import ExampleStats, ExampleWeights
from ssl_weighting.weighting.rules import make_rule
from ssl_weighting.weighting.stats import Predictions

MASKED, SGD = make_rule("masked_adam", 0.1), make_rule("sgd", 1.0)


def test_only_named_rows_move_and_repeats_are_summed():
    weights = ExampleWeights(10, SGD)
    weights.step(torch.tensor([2, 5, 2]), torch.tensor([0.1, 0.2, 0.3]))
    expected = torch.ones(10)
    expected[2], expected[5] = 0.6, 0.8
    torch.testing.assert_close(weights.values, expected)
    torch.testing.assert_close(weights.gather(torch.tensor([5, 2])), torch.tensor([0.8, 0.6]))


def test_a_zero_gradient_leaves_a_row_alone():
    weights = ExampleWeights(4, MASKED)
    for _ in range(3):
        weights.step(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]))
    assert weights.values[0] == 1
    assert weights.values[1] < 0.8


def test_bounds():
    weights = ExampleWeights(4, SGD, bounds=(0.5, 2.0))
    weights.step(torch.tensor([0, 1]), torch.tensor([9.0, -9.0]))
    assert weights.values.tolist() == [0.5, 2.0, 1.0, 1.0]


def test_shared_weight_takes_the_mean_gradient():
    weights = ExampleWeights(100, SGD, shared=True)
    weights.step(torch.tensor([3, 50]), torch.tensor([0.2, 0.4]))
    assert weights.values.shape == (1,)
    torch.testing.assert_close(weights.gather(torch.tensor([99, 0])), torch.tensor([0.7, 0.7]))


def test_a_shared_weight_adds_up_the_terms_of_an_example():
    """Two equal terms: twice the derivative of one."""
    index, gradient = torch.tensor([3, 50]), torch.tensor([0.2, 0.4])
    one, two = ExampleWeights(100, SGD, shared=True), ExampleWeights(100, SGD, shared=True)
    one.step(index, gradient)
    two.step(index.repeat(2), gradient.repeat(2), examples=2)
    torch.testing.assert_close(1 - two.values, 2 * (1 - one.values))


def test_dense_adam_moves_rows_that_are_absent():
    """The ablation's rival: vanilla Adam drags examples along that are not in the batch."""
    weights = ExampleWeights(3, make_rule("adam", 0.1))
    weights.step(torch.tensor([0]), torch.tensor([1.0]))
    before = weights.values.clone()
    weights.step(torch.tensor([1]), torch.tensor([1.0]))
    assert weights.values[0] < before[0]
    assert weights.values[2] == 1


@pytest.mark.parametrize("row", [-1, 10])
def test_index_outside(row):
    weights = ExampleWeights(10, MASKED)
    with pytest.raises(UserError, match=rf"row {row}.*0 to 9"):
        weights.gather(torch.tensor([0, row]))
    with pytest.raises(UserError, match=rf"row {row}"):
        weights.step(torch.tensor([row]), torch.tensor([1.0]))


def test_state_dict_holds_values_and_moments():
    def step(weights, k):
        weights.step(torch.tensor([k % 3, 4]), torch.tensor([0.5, -0.3 * k]))

    through, first, second = (ExampleWeights(5, MASKED) for _ in range(3))
    for k in range(6):
        step(through, k)
    for k in range(3):
        step(first, k)
    second.load_state_dict(first.state_dict())
    for k in range(3, 6):
        step(second, k)
    assert torch.equal(second.values, through.values)


def test_values_and_state_move_with_the_module():
    weights = ExampleWeights(3, MASKED)
    weights.step(torch.tensor([0]), torch.tensor([1.0]))
    weights.double()
    weights.step(torch.tensor([0]), torch.tensor([1.0]))
    assert weights.values.dtype == weights.moments.dtype == torch.float64
    assert weights.values[0] < 0.85


def test_record():
    record = ExampleStats(4)
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    record.update_predictions([Predictions(torch.tensor([1, 3]), target, torch.tensor([0.7, 0.9]))])
    record.update_influences(torch.tensor([3]), torch.tensor([-2.0]))
    record.update_influences(torch.tensor([3, 1, 3, 0]), torch.tensor([0.25, 0.25, 0.25, 0.0]))
    assert record.pseudo_label.tolist() == [-1, 1, -1, 0]
    torch.testing.assert_close(record.confidence[[1, 3]], torch.tensor([0.7, 0.9]))
    assert record.updates.tolist() == [0, 1, 0, 2]
    assert record.influence[[1, 3]].tolist() == [0.25, 0.5]
    assert record.influence[[0, 2]].isnan().all()
