"""A frozen encoder: features of all examples, computed once; training sees them alone."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command import words
from discovered import every_method
from frozen import STRONG, Small, contents, fitted, frozen, kept_in, one_line, set_up, table
from lightning.pytorch import Callback
from made_up import write_films
from modules import digits

import ssl_weighting
from ssl_weighting import encoding
from ssl_weighting.algorithms.base import Algorithm
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.app.belonging import Belonging
from ssl_weighting.app.cli import main
from ssl_weighting.app.runs import Run
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.transformer import Transformer
from ssl_weighting.data.features import FeatureFile
from ssl_weighting.encoder import PLAIN, Encoder, FeatureOptions, view_name
from ssl_weighting.errors import UnsolvedError, UserError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def counted():
    Small.seen, Small.stop_after = 0, None


# ---- what is kept ----


def test_cached_features_are_the_encoders_output(tmp_path):
    made, data = set_up(tmp_path, STRONG())
    assert Small.seen > 0
    for part in ("labeled", "validation", "unlabeled"):
        rows = data.sets[part]
        expected = made.encoder.features(data.view(rows.raw(slice(20)), ()))
        found = table(data, part)[PLAIN].fetch(rows.rows[:20])
        assert found.shape == (20, 1, 6) and found.dtype == torch.float32
        torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-6)
    pool = made.encoder(data.view(data.sets["unlabeled"].raw(), ()))
    torch.testing.assert_close(pool.mean(0), torch.zeros(6), rtol=0, atol=1e-4)
    torch.testing.assert_close(pool.std(0, unbiased=False), torch.ones(6), rtol=0, atol=1e-4)
    assert {f.shape[1] for name, f in table(data).items() if name != PLAIN} == {2}
    batch = data.sets["unlabeled"].__getitems__(range(9))
    seen = made.views_of(data).of({"labeled": data.sets["labeled"].__getitems__([0]), "unlabeled": batch})[1]
    for name, steps in made.algorithm.views.items():
        kept = made.encoder.standardised(batch.inputs[view_name(steps)])
        assert all(
            any(torch.equal(row, own) for own in rows)
            for row, rows in zip(seen.views[name], kept, strict=True)
        )
    assert not torch.equal(seen.views["weak"], seen.views["strong"])


def test_training_sees_features_only_and_a_second_run_computes_nothing(tmp_path):
    first, _ = fitted(tmp_path, STRONG())
    assert Small.seen > 0
    Small.stop_after = 0
    second, data = fitted(tmp_path, STRONG())
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    Small.stop_after = None
    torch.testing.assert_close(
        second.views_of(data).plain(data.sets["validation"].raw()),
        second.encoder.standardised(table(data)[PLAIN].fetch(data.sets["validation"].rows)[:, 0]),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_stopped_encoding_goes_on_to_the_same_bytes(tmp_path, share):
    set_up(tmp_path / "whole", STRONG())
    total, Small.seen = Small.seen, 0
    Small.stop_after = int(share * total)
    with pytest.raises(KeyboardInterrupt):
        set_up(tmp_path / "stopped", STRONG())
    before, Small.seen, Small.stop_after = Small.seen, 0, None
    set_up(tmp_path / "stopped", STRONG())
    assert total <= before + Small.seen <= total + 2 * 64
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_augmented_views_are_other_draws_of_each_example(tmp_path):
    _, data = set_up(tmp_path, STRONG(), views=3)
    strong = next(f for name, f in table(data).items() if "RandAugment" in name)
    draws = strong.fetch(data.sets["unlabeled"].rows[:50])
    assert draws.shape == (50, 3, 6)
    assert not any(torch.equal(draws[:, a], draws[:, b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_another_split_shares_plain_features(tmp_path):
    set_up(tmp_path, views=0, data=digits(num_unlabeled=500))
    first, kept = Small.seen, kept_in(tmp_path)
    assert len(kept) == 1
    Small.seen = 0
    set_up(tmp_path, views=0, data=digits(num_unlabeled=500, split_seed=9))
    assert 0 < Small.seen < first
    assert kept_in(tmp_path) == kept
    Small.seen = 0
    set_up(tmp_path, views=0, data=digits())
    set_up(tmp_path, views=0, data=digits(split_seed=3))
    assert kept_in(tmp_path) == kept
    assert Small.seen <= 1297


def test_views_none_shows_every_example_as_it_is(tmp_path):
    made, data = set_up(tmp_path, views=0)
    assert list(table(data)) == [PLAIN]
    batch = data.sets["unlabeled"].__getitems__(range(5))
    seen = made.views_of(data).of({"labeled": data.sets["labeled"].__getitems__([0]), "unlabeled": batch})[1]
    plain = made.encoder.standardised(batch.inputs[PLAIN][:, 0])
    assert all(torch.equal(view, plain) for view in seen.views.values())


def test_a_view_that_is_not_kept_is_never_shown_as_the_plain_one(tmp_path):
    made, data = set_up(tmp_path, STRONG())
    batch = data.sets["unlabeled"].__getitems__(range(5))
    with pytest.raises(KeyError):
        made.encoder.of(batch.inputs, ("weak", "unheard of"))


def test_two_runs_at_once(tmp_path, monkeypatch):
    """The other fills the file while this one waits for its turn."""
    lock = FeatureFile.lock

    def late(self):
        if len(missing := self.missing(rows)):
            self.fill(missing, torch.zeros(len(missing), *self.shape[1:]))
        return lock(self)

    made, data = set_up(tmp_path / "first", views=0)
    rows = data.sets["unlabeled"].rows
    work = encoding._Work(
        made.encoder,
        made.views_of(data),
        made.features,
        torch.device("cpu"),
        data.sets["unlabeled"].source,
        rows,
    )
    file = FeatureFile(tmp_path / "other", (1297, 1, 6))
    monkeypatch.setattr(FeatureFile, "lock", late)
    work._fill(file, (), PLAIN)
    assert not len(file.missing(rows))


# ---- training ----


def test_the_encoder_never_moves_and_is_in_the_checkpoint(tmp_path):
    before = copy.deepcopy(frozen().state_dict())

    class Saves(Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "c.ckpt")

    made, _ = fitted(tmp_path / "cache", steps=3, callbacks=[Saves()])
    assert not made.encoder.training and not any(m.training for m in made.encoder.modules())
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]
    for name, value in before.items():
        assert torch.equal(made.encoder.backbone.state_dict()[name], value), name
        assert torch.equal(saved[f"encoder.backbone.{name}"], value), name
    assert torch.equal(saved["encoder.mean"], made.encoder.mean)
    assert not any(p.requires_grad for p in made.encoder.parameters())
    trained = {id(p) for group in made.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in made.model.parameters()}


@every_method
def test_every_method_trains_on_features_or_is_refused_in_one_line(method, tmp_path):
    made, refusal = None, ""
    try:
        made, _ = fitted(tmp_path, method(), steps=3, data=digits(num_unlabeled=60))
    except UnsolvedError:  # a property of the method's loss, not of features
        return
    except UserError as error:
        refusal = str(error)
    if made is None:
        assert refusal.startswith("model.") and method.__name__ in refusal and "\n" not in refusal
        return
    assert made.trainer.global_step == 3
    assert all(p.isfinite().all() for p in made.model.parameters())


def test_most_methods_are_not_refused(tmp_path):
    for name in ("FixMatch", "UDA", "MixMatch", "MeanTeacher", "PseudoLabel", "VAT", "LabelPropagation"):
        method = next(m for m in _below(Algorithm) if m.__name__ == name)
        fitted(tmp_path, method(), steps=1, data=digits(num_unlabeled=60))


def _below(cls):
    return {c for s in cls.__subclasses__() for c in {s} | _below(s)}


def test_a_view_that_learns_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^model\.algorithm=FixMatch: its view CTAugment is learned"
    ) as error:
        fitted(tmp_path, FixMatch(strong=[CTAugment()]))
    assert "--model.algorithm.strong [RandAugment]" in one_line(error)
    assert Small.seen == 0


def test_no_view_where_a_method_compares_them_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^model\.features\.views=0: model\.algorithm=FixMatch compares"
    ) as error:
        fitted(tmp_path, STRONG(), views=0)
    assert "give --model.features.views 1" in one_line(error)


@pytest.mark.parametrize(("name", "value"), [("views", -1), ("batch_size", 0), ("resize", 4)])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^model\.features\.{name}={value}: must be at least"):
        FeatureOptions(**{name: value})


def test_images_are_resized_for_the_encoder():
    encoder = Encoder(frozen(), resize=16)
    sizes = []
    encoder.backbone.register_forward_pre_hook(lambda _, given: sizes.append(tuple(given[0].shape)))
    assert encoder(torch.rand(3, 1, 8, 8)).shape == (3, 6)
    assert sizes == [(3, 1, 16, 16)]


# ---- runs ----

OPTIONS = {
    "trainer.max_steps": 40,
    "trainer.val_check_interval": 20,
    "trainer.log_every_n_steps": 4,
    "trainer.accelerator": "cpu",
    "model.weighting.inner_steps": 3,
    "model.weighting.warmup_steps": 5,
    "model.weighting.update_masked": "true",
    "model.algorithm": "FixMatch",
    "checkpoint.every_steps": 7,
    "data.unlabeled_batch_size": 16,
    "model.backbone": "ModuleBackbone",
    "model.backbone.module": "tiny_encoder.Net",
    "model.backbone.head": "fc",
    "model.backbone.frozen": "true",
}
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(1, 12, 3), nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture
def own_net(tmp_path, monkeypatch):
    (tmp_path / "tiny_encoder.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.chdir(tmp_path)


def typed(runs, cache):
    return ["fit", *words({"config": "digits_uda", "runs": runs, "model.features.cache": cache} | OPTIONS)]


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_trained_run_predicts_new_examples_as_those_it_kept(own_net, tmp_path):
    cache = tmp_path / "cache"
    assert main([*typed("runs", cache), "--trainer.max_steps", "6"]) == 0
    assert kept_in(cache)
    shutil.rmtree(cache)
    (run,) = (tmp_path / "runs").glob("*/*")
    model = ssl_weighting.load(run)
    data = digits(num_labeled=50, num_validation=200)
    data.setup("fit")
    pixels = data.sets["unlabeled"].raw(slice(40))
    found = model.probabilities(pixels)
    assert not cache.exists()
    encoder = model.module.encoder
    features = encoder.features(data.view(pixels, ()))
    expected = model.module.ema.model(encoder.standardised(features)).probabilities()
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-6)
    assert not torch.equal(encoder.mean, torch.zeros_like(encoder.mean))
    np.testing.assert_allclose(model.features(pixels), features.detach().numpy(), atol=1e-6)
    trained = Run(run).data()
    parts = [
        encoder.features(data.view(trained.sets[part].raw(), ())).detach()
        for part in ("labeled", "unlabeled")
    ]
    labels = np.concatenate([trained.sets["labeled"].labels, np.full(len(parts[1]), -1)])
    belonging = Belonging(np.concatenate(parts), labels)
    own = model.own_probability(pixels)
    np.testing.assert_allclose(own, belonging(features.detach().numpy()), atol=1e-3)
    assert own.std() > 0.01
    assert main(["embed", str(run), "--on", "unlabeled", "--out", "pool.parquet"]) == 0
    rows = pq.read_table("pool.parquet").slice(0, 40).to_pydict()
    own = model.features(data.load(True).fetch(torch.tensor(rows["index"])))
    np.testing.assert_allclose(np.array(rows["features"]), own, atol=1e-6)
    assert main(["predict", str(run)]) == 0
    assert main(["test", str(run)]) == 0
    assert main(["resume", str(run), "--trainer.max_steps", "8"]) == 0


@pytest.mark.slow
def test_sigkill(own_net, tmp_path):
    def start(runs, *more):
        command = [sys.executable, "-m", "ssl_weighting", *typed(runs, tmp_path / f"cache of {runs}"), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("killed")

    def metrics():
        return "".join(path.read_text() for path in Path("killed").glob("*/*/metrics.csv"))

    while "\n24," not in metrics():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(tmp_path / "cache of killed")  # it is made again, the same
    assert start("killed", "--ckpt_path", "last").wait() == 0
    (whole,), (killed,) = (list(Path(name).glob("*/*")) for name in ("whole", "killed"))
    first, second = last(whole), last(killed)
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value.nan_to_num(), second[name].nan_to_num()), name
    assert (whole / "metrics.csv").read_text() == (killed / "metrics.csv").read_text()


# ---- texts ----


@pytest.mark.slow
def test_texts(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_films(Path("films.csv"), "up", "down")
    assert main(["init", "--text", "films.csv", "--encoder", str(tiny_bert)]) == 0
    short = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "trainer.accelerator": "cpu"}
    short |= {
        "model.weighting.inner_steps": 1,
        "model.weighting.warmup_steps": 1,
        "trainer.log_every_n_steps": 1,
    }
    whole = {"model.backbone.frozen": "true", "model.backbone.pooling": "mean"}
    assert main(["fit", "--config", "films.yaml", *words(short | whole)]) == 0
    assert kept_in(tmp_path / "cache" / "ssl_weighting")
    (run,) = Path("runs").glob("*/*")
    bert = Transformer(str(tiny_bert), pooling="mean")
    state = last(run)
    for name, value in bert.state_dict().items():
        assert torch.equal(state[f"encoder.backbone.{name}"], value), name
    shutil.rmtree("cache")
    model = ssl_weighting.load(run)
    found = model.probabilities(["a good film", "a bad film", "a good film"])
    assert np.array_equal(found[0], found[2]) and not np.array_equal(found[0], found[1])
    assert main(["predict", str(run)]) == 0
    Path("new.csv").write_text("text\na good film\na bad film\n")
    assert main(["embed", str(run), "--on", "new.csv"]) == 0
    table = pq.read_table(run / "embeddings-new.parquet").to_pydict()
    assert table["id"] == ["a good film", "a bad film"]
    np.testing.assert_allclose(np.array(table["features"]), model.features(table["id"]), atol=1e-6)
