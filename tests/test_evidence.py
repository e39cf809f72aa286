"""``kind: evidence``: λ as a function of few parameters of what is known of an example."""

import pyarrow.parquet as pq
import pytest
import torch
from discovered import METHODS, every_method
from modules import digits, ssl_module

from lab.claims import bit_identity
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.app.bare_trainer import bare_trainer
from ssl_weighting.app.callbacks.run_files import write_weights
from ssl_weighting.backbones.conv import SmallConvNet
from ssl_weighting.errors import UserError
from ssl_weighting.weighting import EvidenceWeights, ExampleStats, WeightingOptions
from ssl_weighting.weighting.evidence import FEATURES
from ssl_weighting.weighting.rules import make_rule
from ssl_weighting.weighting.stats import Predictions

SGD, ADAM = make_rule("sgd", 1.0), make_rule("adam", 0.1)


def seen(rows, sure, classes=3):
    """Predictions of the first class, each as sure as it is told, and hard targets."""
    logits = torch.zeros(len(rows), classes)
    logits[:, 0] = torch.as_tensor(sure)
    target = torch.nn.functional.one_hot(logits.argmax(1), classes).float()
    return Predictions(torch.as_tensor(rows), target, logits.softmax(1).amax(1), logits)


def filled(size=12, rule=SGD, **options):
    """Weights with evidence of their own for every example, in float64."""
    torch.manual_seed(0)
    weights = EvidenceWeights(size, rule, **options).double()
    weights.evidence = torch.randn(size, len(FEATURES)).double()
    weights.phi = 0.5 * torch.randn(len(FEATURES)).double()
    return weights


def test_the_slope_is_that_of_the_validation_loss_after_training_to_the_end():
    """Weighted least squares, whose optimum has a closed form: central differences, and autograd through it."""
    weights = filled(init=0.7, bounds=(0.25, 3.0))
    x, y = torch.randn(12, 4).double(), torch.randn(12, 2).double()
    held_x, held_y = torch.randn(6, 4).double(), torch.randn(6, 2).double()

    def validation_loss(lam):
        gram = x.T @ (lam[:, None] * x) / 12 + 0.1 * torch.eye(4).double()
        theta = torch.linalg.solve(gram, x.T @ (lam[:, None] * y) / 12)
        return (held_x @ theta - held_y).square().sum()

    def of(phi):
        return validation_loss(0.25 + 2.75 * torch.sigmoid(weights.evidence @ phi + weights.offset))

    rows = torch.arange(12)
    lam = weights.gather(rows).requires_grad_()
    influence = torch.autograd.grad(validation_loss(lam), lam)[0]
    found = weights.slope(rows, influence, examples=1)
    phi = weights.phi.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(of(phi), phi)[0], rtol=1e-9, atol=0)
    step = 1e-5 * torch.eye(len(FEATURES)).double()
    differences = torch.stack([(of(weights.phi + d) - of(weights.phi - d)) / 2e-5 for d in step])
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=0)
    torch.testing.assert_close(weights.slope(rows, influence), found / 12)  # the mean over examples


@pytest.mark.parametrize(("init", "bounds"), [(1.0, (0.0, 2.0)), (0.3, (0.1, 5.0))])
def test_lambda_starts_at_init_also_where_evidence_is_there(init, bounds):
    weights = EvidenceWeights(5, ADAM, 0.0, init, bounds)
    weights.note([seen([0, 3], [1.0, 4.0])], ExampleStats(5))
    torch.testing.assert_close(weights.gather(torch.arange(5)), torch.full((5,), init))
    weights.step(torch.tensor([0, 3]), torch.tensor([0.5, 0.1]))
    moved = weights.gather(torch.arange(5))
    torch.testing.assert_close(moved[[1, 2, 4]], torch.full((3,), init))  # nothing is known of them
    assert moved[0] < init != moved[3]
    assert bool((moved > bounds[0]).all())


@pytest.mark.parametrize("rule", [make_rule("sgd", 100.0), ADAM])
def test_an_example_falls_with_others_like_it(rule):
    """The unsure harm and the sure help; rows 4 (unsure) and 5 (sure) are in no Λ batch."""
    weights, stats = EvidenceWeights(6, rule), ExampleStats(6)
    for _ in range(3):
        weights.note([seen(range(6), [0.5, 0.5, 5.0, 5.0, 0.5, 5.0])], stats)
    for _ in range(20):
        weights.step(torch.arange(4), torch.tensor([0.01, 0.01, -0.01, -0.01]))
    found = weights.gather(torch.arange(6))
    torch.testing.assert_close(found[4], found[0])
    torch.testing.assert_close(found[5], found[2])
    assert found[4] < 0.7
    assert found[5] > 1.3


def test_the_prior_pulls_lambda_back_to_init():
    weights = filled(rule=SGD, pull=0.1)
    before = (weights.gather(torch.arange(12)) - 1).abs()
    for _ in range(50):
        weights.step(torch.arange(12), torch.zeros(12).double())
    assert bool(((weights.gather(torch.arange(12)) - 1).abs() < 0.02 * before.clamp(min=0.1)).all())


def test_what_the_evidence_is():
    weights, stats = EvidenceWeights(4, SGD), ExampleStats(4)
    for sure in ([0.0, 3.0], [0.0, -3.0], [0.0, float("nan")]):
        now = seen([0, 3], sure)
        weights.note([now], stats)
        stats.update_predictions([now])
    evidence = weights.evidence
    assert evidence[[1, 2]].tolist() == [[0.0] * 6] * 2
    assert evidence[[0, 3], 0].tolist() == [1, 1]
    assert bool((evidence.abs() <= 3).all())
    assert evidence[3, 5] < evidence[0, 5]  # its pseudo-label changed, and the other's did not
    torch.testing.assert_close(weights.steadiness, torch.tensor([0.71875, 0.5, 0.5, 0.375]))


def test_masked_adam_is_adam_where_there_are_no_rows():
    options = WeightingOptions(kind="evidence")
    assert options.bounds == (0.0, 2.0)
    assert WeightingOptions().bounds == (0.0, float("inf"))
    assert WeightingOptions(kind="evidence", storage="disk", optimizer="adam").storage == "disk"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": 0.0}, r"model\.weighting\.init=0\.0: with kind: evidence must lie between the bounds 0 and 2; give 1"),
        ({"init": 5.0}, r"model\.weighting\.init=5\.0: must lie in \[0\.0, 2\.0\]"),
        ({"weights": "run/weights.parquet"}, r"model\.weighting\.weights=run/weights\.parquet: .*kind: per_example"),
        ({"prior": -1.0}, r"model\.weighting\.prior=-1\.0: must be at least 0"),
        ({"bounds": (3.0, float("inf"))}, r"model\.weighting\.bounds=\[3\.0, 2\.0\]"),
    ],
)  # fmt: skip
def test_refusals(options, said):
    with pytest.raises(UserError, match=said) as refusal:
        WeightingOptions(kind="evidence", **options)
    assert "\n" not in str(refusal.value)


# ---- in training ------------------------------------------------------------------------------------------


@every_method
def test_every_method(method, tmp_path):
    case = bit_identity.of_method(method) | {"weighting_kind": "evidence", "weighting_inner_steps": 1}
    module = bit_identity.module(3, case | {"weighting_update_masked": True})
    bare_trainer(3, "cpu", default_root_dir=tmp_path).fit(module, bit_identity.images(3, 1))
    weights = module.weighting.weights
    assert bool(weights.phi.isfinite().all())
    assert bool((weights.phi != 0).any()) == bool(module.algorithm.views)
    assert bool((weights.evidence[:, 0] == 1).any()) == bool(module.algorithm.views)


def test_all_methods_are_tried():
    assert len(METHODS) >= 13


@pytest.mark.parametrize("storage", ["memory", "sharded", "disk"])
def test_a_resumed_run_is_the_run_left_alone(storage, tmp_path):
    constant = {"weighting_kind": "evidence", "theta_schedule": "constant"}
    case = constant | {"weighting_storage": storage}
    found = []
    for name, extra in (("whole", {}), ("parts", {"stop_at": 6})):
        (tmp_path / name).mkdir()
        found.append(bit_identity.run(tmp_path / name, case | extra))
    assert {k: v for k, v in found[0].items() if k != "metrics"} == {
        k: v for k, v in found[1].items() if k != "metrics"
    }
    memory = bit_identity.run(tmp_path, constant)
    assert memory["Λ"] == found[0]["Λ"]


def evidence_run(tmp_path, **options):
    given = {"weighting_inner_steps": 2, "weighting_kind": "evidence", "weighting_lr": 0.1} | options
    module = ssl_module(10, SmallConvNet(1, channels=(8, 8)), UDA(threshold=None), **given)
    trainer = bare_trainer(6, "cpu", default_root_dir=tmp_path)
    trainer.fit(module, digits())
    return module, trainer


def test_every_weight_can_be_read_and_phi_is_logged(tmp_path):
    module, _ = evidence_run(tmp_path)
    write_weights(module, tmp_path / "weights.parquet")
    table = pq.read_table(tmp_path / "weights.parquet")
    values = torch.from_numpy(table["weight"].to_numpy().copy())
    assert torch.equal(values, module.weighting.weights.gather(torch.arange(len(values))))
    known = torch.from_numpy(table["pseudo_label"].is_valid().to_numpy())
    assert bool((values[~known] == 1).all())
    assert int((values[known] != 1).sum()) > 0.9 * int(known.sum())
    assert {f"weights/phi_{name}" for name in FEATURES} <= module.latest.keys()
    assert module.latest["weights/phi_energy"] == float(module.weighting.weights.phi[4])


def test_rows_on_the_disk_of_another_kind_are_refused(tmp_path):
    evidence_run(tmp_path, weighting_storage="disk")
    with pytest.raises(
        UserError, match=r"weights\.rows: .* or of another model\.weighting\.kind: leave that as it was"
    ):
        evidence_run(tmp_path, weighting_storage="disk", weighting_kind="per_example")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    _, trainer = evidence_run(tmp_path)
    trainer.save_checkpoint(tmp_path / "e.ckpt")
    other = ssl_module(10, SmallConvNet(1, channels=(8, 8)), UDA(threshold=None), weighting_inner_steps=2)
    with pytest.raises(
        UserError, match=r"model\.weighting\.kind: the checkpoint holds another kind of state"
    ):
        bare_trainer(8, "cpu", default_root_dir=tmp_path).fit(other, digits(), ckpt_path=tmp_path / "e.ckpt")
