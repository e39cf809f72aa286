"""``--trainer.strategy fsdp2``: θ, its average, gradients and the optimiser's state divided among the processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from ssl_weighting.backbones.base import Classifier
from ssl_weighting.checks import require
from ssl_weighting.influence import Influence

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
NETWORKS = ("model.", "ema.model.")


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the checkpoints that every other strategy writes: one file, whole tensors.

    A run can be tested, predicted with and weighed from such a checkpoint by a single process, and gone on with by
    another number of them.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """All processes share the data."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Λ and record of this process; in the first one, the whole networks too. Every process must ask."""
        module: Any = self.lightning_module
        state = {k: v for k, v in module.state_dict().items() if not k.startswith(NETWORKS)}
        for prefix in NETWORKS:
            network = get_model_state_dict(module.get_submodule(prefix.rstrip(".")), options=WHOLE)
            state |= {prefix + key: value for key, value in network.items()}
        return state

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The file's content; nothing of it is loaded into the module yet."""
        content: dict[str, Any] = torch.load(
            checkpoint_path, map_location="cpu", mmap=True, weights_only=True
        )
        return content

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """This process's part of the networks, and its Λ."""
        module: Any = self.lightning_module
        state = dict(checkpoint["state_dict"])
        for prefix in NETWORKS:
            own = {k.removeprefix(prefix): state.pop(k) for k in list(state) if k.startswith(prefix)}
            set_model_state_dict(module.get_submodule(prefix.rstrip(".")), own, options=WHOLE)
        module.load_state_dict(state, strict=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Loading goes as with other strategies: the module looks at a checkpoint before anything is taken from it."""
        return True

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """In the first process, the optimiser's whole state as torch keeps it, by the parameters' numbers."""
        module: Any = self.lightning_module
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        if not plain.state:  # to be asked for it, torch would make a step first, and count it
            whole: dict[str, Any] = {"state": {}, "param_groups": _named_groups(module, plain)}
        else:
            whole = dict(get_optimizer_state_dict(module.model, plain, options=WHOLE))
        if not whole:
            return whole
        numbers = {
            name: n for n, name in enumerate(n for group in whole["param_groups"] for n in group["params"])
        }
        return {
            "state": {numbers[name]: value for name, value in whole["state"].items()},
            "param_groups": [
                g | {"params": [numbers[n] for n in g["params"]]} for g in whole["param_groups"]
            ],
        }

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """This process's part of the optimiser's state."""
        module: Any = self.lightning_module
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            if not saved["state"]:
                continue
            names = [name for group in _named_groups(module, optimizer) for name in group["params"]]
            named: dict[str, Any] = {
                "state": {names[number]: value for number, value in saved["state"].items()},
                "param_groups": [
                    g | {"params": [names[n] for n in g["params"]]} for g in saved["param_groups"]
                ],
            }
            set_optimizer_state_dict(module.model, optimizer, named, options=WHOLE)


def _named_groups(module: Any, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The optimiser's groups with their parameters' names."""
    names = {id(parameter): name for name, parameter in module.model.named_parameters()}
    return [group | {"params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]


StrategyRegistry.register("fsdp2", FullySharded, "Fully sharded data parallel, version 2", override=True)


def check_divisible(influence: Influence, compiled: bool, skips: bool) -> None:
    """Refuse what needs the whole of θ in each process.

    Raises:
        UserError: Naming the option.
    """
    for key, value, fine in (
        ("influence", type(influence).__name__, not influence.reads_parameters),
        ("compile", True, not compiled),
        ("nonfinite", "skip", not skips),
    ):
        parts = "not with trainer.strategy=fsdp2, which keeps a part of θ in each process; "
        require(f"model.{key}", value, fine, f"{parts}use ddp, or leave it at its default")


def shard(network: Classifier, mesh: DeviceMesh) -> None:
    """Divide a network's parameters among the processes of a mesh: those of each layer together, then the rest."""
    network.backbone.lockstep = True
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP divides no other
    for module in list(network.backbone.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    # Else the rest stays whole after a pass without a gradient, and the average cannot follow.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
