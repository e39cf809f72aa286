"""Loops take turns and are timed; the command writes what it promises; a peer's own loop is driven."""

import json
import time
from functools import partial

import pytest
import torch

from lab.speed import memory, throughput
from lab.speed.floor import METHODS, run_passes
from lab.speed.peers import kind_of
from lab.speed.throughput import Options, parse
from lab.speed.turns import Loop, Turn, take_turns
from ssl_weighting.errors import UserError

TINY = Options(
    methods=("fixmatch",),
    precisions=("32-true",),
    labeled=2,
    depth=10,
    width=1,
    rounds=1,
    threads=1,
)

# A loop of a peer's habits, with no more in it than the adapter asks for: `iterator.next()` between bare excepts.
PEER = {
    "train.py": """
import torch
from dataset.cifar import DATASET_GETTERS

def get_cosine_schedule_with_warmup(optimizer, warmup, total):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

def train(args, labeled, unlabeled, test, model, optimizer, average, schedule):
    labels, pool = iter(labeled), iter(unlabeled)
    for _ in range(args.eval_step):
        try:
            x, y = labels.next()
        except:
            labels = iter(labeled)
            x, y = labels.next()
        try:
            u, _ = pool.next()
        except:
            pool = iter(unlabeled)
            u, _ = pool.next()
        assert len(u) == args.mu * len(x)
        loss = torch.nn.functional.cross_entropy(model(torch.cat((x, u)).to(args.device))[: len(x)], y)
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update(model)
        model.zero_grad()
""",
    "dataset/cifar.py": """
import torchvision
from torchvision.transforms import ToTensor

def get_cifar10(args, root):
    one, two = (torchvision.datasets.CIFAR10(root, train=t, transform=ToTensor()) for t in (True, False))
    return one, two, None

DATASET_GETTERS = {"cifar10": get_cifar10}
""",
    "dataset/randaugment.py": "",
    "models/wideresnet.py": """
import torch

def build_wideresnet(depth, widen_factor, dropout, num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes))
""",
    "models/ema.py": """
class ModelEMA:
    def __init__(self, args, model, decay): pass
    def update(self, model): pass
""",
}


@pytest.mark.slow
def test_rows_and_json(tmp_path, capsys):
    checkout = tmp_path / "peer"
    for name, text in PEER.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    file = tmp_path / "result.json"
    ours, theirs = throughput.run(
        Options(**vars(TINY) | {"json": str(file), "peers": (("peer", str(checkout)),)})
    )
    result = json.loads(file.read_text())
    assert list(result) == ["machine", "step_over_floor", "wait_share", "lambda_share", "rows"]
    assert [row["name"] for row in result["rows"]] == [
        *(f"fixmatch: {part}" for part in ("step", "loop", "floor")),
        *(f"peer: {part}" for part in ("step", "loop")),
    ]
    for row in result["rows"]:
        assert list(row) == ["name", "precision", "seconds_per_step", "images_per_second", "peak_bytes"]
        assert row["seconds_per_step"] * row["images_per_second"] == pytest.approx(2 + 2 * 14)
        assert row["peak_bytes"] > 2**26
    step, loop, floor = (row.seconds_per_step for row in ours.rows)
    assert step < loop
    assert result["wait_share"] == pytest.approx((loop - step) / loop)
    assert step / floor <= result["step_over_floor"] <= loop / floor
    assert 0 < result["lambda_share"] < 0.2
    assert theirs.step_over_floor is None
    said = capsys.readouterr().out
    assert "times as fast as peer in float32" in said


@pytest.mark.parametrize("method", METHODS)
def test_the_floor_counts_every_method(method):
    n, u = 2, 2
    algorithm = METHODS[method].make()
    seen = {"learn": 0, "look": 0}
    network = throughput.SSLModule(10, throughput.WideResNet(10, 1), algorithm).model
    network.register_forward_pre_hook(
        lambda module, inputs: seen.update(
            {k: seen[k] + len(inputs[0]) * ((k == "learn") == torch.is_grad_enabled()) for k in seen}
        )
    )
    passes = METHODS[method].passes(n, u, False)
    run_passes(network, passes, passes.images(torch.device("cpu")))
    assert seen == {"learn": sum(passes.learn) + sum(passes.probe), "look": sum(passes.look)}
    assert all(p.grad is None for p in network.parameters())


def _sleeping(seconds, turns):
    while True:
        turns.step()
        time.sleep(seconds / 2)
        turns.arrived()
        time.sleep(seconds / 2)


def _breaking(turns):
    turns.step()
    raise RuntimeError("out of cheese")


def _ending(turns):
    turns.step()


def test_turns():
    loops = [Loop(f"{n} ms", "32-true", partial(_sleeping, n / 1000)) for n in (20, 60)]
    turns = take_turns(loops, 2, 3, "cpu", 1)
    for loop, seconds in zip(loops, (0.02, 0.06), strict=True):
        assert [type(turn) for turn in turns[loop]] == [Turn, Turn]
        for turn in turns[loop]:
            assert seconds <= turn.loop < seconds + 0.05
            assert seconds / 2 <= turn.fetch == turn.data <= turn.loop - seconds / 2
            assert turn.weights is None
            assert turn.floor is None


@pytest.mark.parametrize(("run", "said"), [(_breaking, "out of cheese"), (_ending, "came to an end")])
def test_a_loop_that_fails_says_why(run, said):
    with pytest.raises(UserError, match=f"odd ended: .*{said}"):
        take_turns([Loop("odd", "32-true", run)], 1, 1, "cpu", 1)


def test_command_line(tmp_path):
    quick = parse("bench", ["--quick", "--device", "cpu"])
    assert (quick.labeled, quick.unlabeled_of("fixmatch"), quick.unlabeled_of("uda")) == (4, 28, 20)
    assert parse("bench", ["--methods", "all"]).methods == tuple(METHODS)
    assert parse("bench", ["--labeled", "3", "--unlabeled", "6"]).unlabeled_of("uda") == 6
    for wrong, said in (
        (["--rounds", "0"], "--rounds=0"),
        (["--peer", "somebody"], "must be NAME=PATH"),
        (["--peer", f"them={tmp_path}"], "no checkout"),
    ):
        with pytest.raises(UserError, match=said):
            parse("bench", wrong)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "randaugment.py").touch()
    assert kind_of(tmp_path).url == "kekmodel/FixMatch-pytorch"
    with pytest.raises(UserError, match="one of our own"):
        parse("bench", ["--peer", f"fixmatch={tmp_path}"])
    with pytest.raises(UserError, match="a multiple of --labeled=4"):
        parse("bench", ["--peer", f"them={tmp_path}", "--labeled", "4", "--unlabeled", "6"])


def test_memory_is_watched(tmp_path, monkeypatch, capsys):
    held = iter(range(0, 10**9, 1000))
    monkeypatch.setattr(memory, "resident", lambda: next(held))
    monkeypatch.setattr(memory, "EVERY", 2)
    monkeypatch.setattr(memory, "WARM", 4)
    file = tmp_path / "memory.json"
    assert memory.main(["--steps", "12", "--device", "cpu", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert list(result) == ["machine", "steps", "bytes_after_500", "bytes_at_the_end", "bytes_a_step"]
    assert result["bytes_a_step"] == pytest.approx(500)
    assert "bytes_a_step" in capsys.readouterr().out
    with pytest.raises(UserError, match="--steps=5"):
        memory.main(["--steps", "5"])
