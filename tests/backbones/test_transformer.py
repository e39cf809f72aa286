"""The text encoder: what is loaded, pooling, groups of equal length, and batches of unequal length together."""

import itertools

import numpy as np
import pytest
import torch
from made_up import LFS_POINTER
from torch import nn

from ssl_weighting.algorithms.base import supervised_term
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.backbones.base import Classifier
from ssl_weighting.backbones.transformer import Transformer, buckets
from ssl_weighting.errors import UserError


def tokens(lengths, longest=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    longest = longest or max(lengths)
    ids = torch.randint(5, 100, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.fixture
def encoder(tiny_bert):
    torch.manual_seed(0)
    return Transformer(str(tiny_bert)).double()


def test_features_are_berts_pooled_output(tiny_bert, encoder):
    from transformers import BertModel

    batch = tokens([7, 7, 7])
    bert = BertModel.from_pretrained(tiny_bert).double().eval()
    with torch.no_grad():
        hidden = bert(**batch).last_hidden_state[:, 0]
        pooled = torch.tanh(hidden @ bert.pooler.dense.weight.T + bert.pooler.dense.bias)
        assert torch.allclose(encoder.eval()(batch), pooled, atol=1e-12)
    assert encoder.feature_dim == 8


def test_comes_in_training_mode_with_dropout(encoder):
    assert encoder.training and encoder.encoder.training
    batch = tokens([6, 6])
    assert not torch.allclose(encoder(batch), encoder(batch))
    assert encoder.dropout.p == 0.1


def test_encoder_without_pooler_gets_a_new_one(tmp_path):
    import transformers

    config = transformers.DistilBertConfig(vocab_size=120, dim=8, hidden_dim=12, n_layers=2, n_heads=2)
    transformers.DistilBertModel(config).save_pretrained(tmp_path)
    encoder = Transformer(str(tmp_path))
    assert encoder.pooler is not None
    features = encoder(tokens([5, 3, 9]))
    assert features.shape == (3, 8) and features.abs().max() <= 1 / 0.9
    features.sum().backward()
    assert encoder.pooler[0].weight.grad.abs().sum() > 0


def test_groups_change_nothing_but_the_padding(encoder):
    batch = tokens([3, 30, 12, 4, 29, 1, 5], longest=32)
    encoder.eval()
    seen = []
    encoder.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    grouped = encoder(batch)
    assert len(seen) > 1 and sum(n for n, _ in seen) == 7
    assert sum(n * length for n, length in seen) < 7 * 32 / 2
    encoder.regroups = False
    assert torch.allclose(grouped, encoder(batch), atol=1e-12)


def test_joined_batches_of_unequal_length(encoder):
    network = Classifier(encoder, 2).double().eval()
    first, second = tokens([4, 9]), tokens([21, 2, 15], seed=1)
    together = network.joint(first, second)
    for output, batch in zip(together, (first, second), strict=True):
        alone = network(batch)
        assert output.inputs is batch
        assert torch.allclose(output.logits, alone.logits, atol=1e-12)
        assert torch.allclose(output.features, alone.features, atol=1e-12)
        assert torch.allclose(output.logits[:, 0], -output.logits[:, 1])


@pytest.mark.parametrize("rounded", [False, True])
def test_constant_batches_cost_no_graph_and_leave_the_gradient(encoder, rounded):
    network = Classifier(encoder, 2).float().eval()
    known, plain, strong = tokens([4, 9]), tokens([7, 3], seed=1), tokens([7, 3], seed=2)

    def gradient(constant):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
            a, b, c = network.joint(known, plain, strong, constant=constant)
            target = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
            loss = supervised_term(a, target).loss() + (c.logits - b.logits.detach()).square().mean()
        assert b.logits.requires_grad == (not constant)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    one, other = gradient(()), gradient((1,))
    assert one.norm() > 0
    assert (one - other).norm() <= (0.02 if rounded else 1e-5) * one.norm()


def test_head_is_drawn_as_berts(encoder):
    torch.manual_seed(0)
    weight = torch.empty(40, 500)
    encoder.initialise_head(weight)
    assert weight.abs().max() <= 0.04 and weight.std().item() == pytest.approx(0.0176, abs=0.001)


def test_buckets_are_the_best_there_are():
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = np.sort(generator.integers(1, 12, generator.integers(1, 8)))
        n = len(lengths)
        for most in (1, 2, 3):
            sizes = buckets(lengths, most)
            assert sum(sizes) == n and 1 <= len(sizes) <= most
            ends = np.cumsum(sizes)
            got = sum(size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True))
            cuts = itertools.combinations(range(1, n), len(sizes) - 1)
            best = min(
                sum((b - a) * lengths[b - 1] for a, b in itertools.pairwise((0, *cut, n))) for cut in cuts
            )
            assert got == best


def test_equal_lengths_stay_together():
    assert buckets(np.array([9] * 6), 4) == [6]
    assert buckets(np.array([100, 101, 102]), 4) == [3]  # a pass more would save next to nothing


def test_last_block_is_the_last_layer_and_the_pooler(encoder):
    from ssl_weighting.influence.scope import scope_parameters

    names = set(scope_parameters(Classifier(encoder, 2), "last_block"))
    assert {n.split(".")[1] for n in names} <= {"encoder", "classifier"}
    assert any("layer.1." in n for n in names) and not any("layer.0." in n for n in names)
    assert any("pooler" in n for n in names) and "heads.classifier.weight" in names


def test_perturbed_embeddings(encoder):
    network = Classifier(encoder, 2).double().eval()
    batch = tokens([4, 9])
    direction = network.perturbation_like(batch)
    assert direction.shape == (2, 9, 8)
    assert not direction[0, 4:].any() and direction[0, :4].abs().min() > 0
    still = network(network.perturb(batch, torch.zeros_like(direction))).logits
    assert torch.allclose(still, network(batch).logits, atol=1e-12)
    assert not torch.allclose(network(network.perturb(batch, direction)).logits, still)
    joined = network.joint(
        network.perturb(batch, direction), network.perturb(tokens([3]), torch.zeros(1, 3, 8))
    )
    assert torch.allclose(joined[0].logits, network(network.perturb(batch, direction)).logits, atol=1e-12)


def test_vat_finds_the_direction_that_matters(encoder):
    network = Classifier(encoder, 2).double().eval()
    nn.init.normal_(network.head("classifier").weight)
    batch = tokens([6, 11, 8])
    plain = network(batch)
    torch.manual_seed(0)
    found = VAT(epsilon=1.0).perturbation(network, plain)
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert not found[0, 6:].any()

    def change(by):
        return (network(network.perturb(batch, by)).logits - plain.logits).abs().sum(1)

    noise = torch.stack(
        [
            change(n / n.flatten(1).norm(dim=1)[:, None, None])
            for n in (network.perturbation_like(batch) for _ in range(20))
        ]
    )
    assert (change(found) > 2 * noise.mean(0)).all()


def test_too_long_a_text(encoder):
    with pytest.raises(UserError, match=r"data\.max_length.*161.*at most 160"):
        encoder(tokens([161]))


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"max_buckets": 0}, {"layers": 0}])
def test_bad_arguments(tiny_bert, wrong):
    (key,) = wrong
    with pytest.raises(UserError, match=rf"model\.backbone\.{key}="):
        Transformer(str(tiny_bert), **wrong)


def test_pickled_weights_are_refused(bert_copy):
    weights = bert_copy / "model.safetensors"
    from safetensors.torch import load_file

    torch.save(load_file(weights), bert_copy / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.backbone\.name=.*model\.safetensors") as caught:
        Transformer(str(bert_copy))
    assert "\n" not in str(caught.value)


def test_a_pointer_of_git_lfs(bert_copy):
    (bert_copy / "model.safetensors").write_text(LFS_POINTER)
    with pytest.raises(UserError, match=r"its model\.safetensors is a pointer of git-lfs.*`git lfs pull`"):
        Transformer(str(bert_copy))


@pytest.mark.parametrize("length", [0, 7, 500])
def test_half_a_download(bert_copy, length):
    weights = bert_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(UserError, match=r"no encoder to be had .*a whole model\.safetensors") as caught:
        Transformer(str(bert_copy))
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(bert_copy, tmp_path):
    import json

    config = json.loads((bert_copy / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    (bert_copy / "config.json").write_text(json.dumps(config))
    (bert_copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match=r"model\.backbone\.name="):
        Transformer(str(bert_copy))
    assert not (tmp_path / "ran").exists()


def test_mean_pooling_leaves_padding_out(tiny_bert):
    from transformers import BertModel

    encoder = Transformer(str(tiny_bert), pooling="mean").double().eval()
    bert = BertModel.from_pretrained(tiny_bert).double().eval()
    batch = tokens([4, 9])
    with torch.no_grad():
        hidden = bert(**batch).last_hidden_state
        expected = torch.stack([hidden[0, :4].mean(0), hidden[1].mean(0)])
        assert torch.allclose(encoder(batch), expected, atol=1e-12)
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_frozen_layers_get_no_gradient(tiny_bert):
    encoder = Transformer(str(tiny_bert), frozen_layers=1)
    encoder(tokens([4, 9])).sum().backward()
    moved = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert moved == {n for n, _ in encoder.named_parameters() if "layer.1." in n or "pooler" in n}
    with pytest.raises(UserError, match=r"model\.backbone\.frozen_layers=2: must be at least 0 and below 2"):
        Transformer(str(tiny_bert), frozen_layers=2)


def test_the_first_layers_alone(tiny_bert):
    from transformers import BertModel

    encoder = Transformer(str(tiny_bert), pooling="mean", layers=1).double().eval()
    whole = BertModel.from_pretrained(tiny_bert).double().eval()
    batch = tokens([9, 9])
    with torch.no_grad():
        expected = whole(**batch, output_hidden_states=True).hidden_states[1].mean(1)
        assert torch.allclose(encoder(batch), expected, atol=1e-12)
    assert not any("layer.1." in name for name, _ in encoder.named_parameters())
    with pytest.raises(UserError, match=r"model\.backbone\.layers=3 more than it has"):
        Transformer(str(tiny_bert), layers=3)
