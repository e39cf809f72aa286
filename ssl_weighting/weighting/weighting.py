"""Λ: the weights of all unlabelled examples, and the step that learns them (Alg. 1, lines 8 to 12)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from ssl_weighting.distributed import all_processes, process_count
from ssl_weighting.errors import NonFiniteError
from ssl_weighting.influence import Influence
from ssl_weighting.protocols import Network
from ssl_weighting.terms import LossTerm, Objective
from ssl_weighting.weighting.evidence import EVIDENCE, EvidenceWeights
from ssl_weighting.weighting.options import Kind, WeightingOptions
from ssl_weighting.weighting.parquet import read_weights
from ssl_weighting.weighting.row_file import RowFile, open_rows
from ssl_weighting.weighting.rules import MOMENTS, Rule, make_rule
from ssl_weighting.weighting.stats import COLUMNS, ExampleStats, Predictions, Statistics, predictions_of
from ssl_weighting.weighting.table import Column, Table, defaults_of

CHUNK = 2**20
"""Rows that are set at once."""
SAMPLE = 2**20
"""Most unlabelled examples that statistics look at: of more, an even sample is taken."""


def _weight_columns(init: float, moments: int) -> dict[str, Column]:
    return {"values": Column(init), "moments": Column(0.0, width=moments)}


def row_defaults(init: float, kind: Kind = "per_example") -> Tensor:
    """A row of ``weights.rows`` as it is before its example was seen, float32, (8,), of evidence (11,)."""
    return defaults_of(EVIDENCE if kind == "evidence" else _weight_columns(init, MOMENTS), COLUMNS)


@dataclass(frozen=True)
class Update:
    """What a Λ step did.

    Attributes:
        influences: (B,) of all processes, masked ones 0 unless they move too.
        weights: (B,), λ of the examples after the step.
        validation_loss: L_S(V', θ), a scalar.
        phi: Parameters of λ by name, scalars, where it is a function.
    """

    influences: Tensor
    weights: Tensor
    validation_loss: Tensor
    phi: Mapping[str, Tensor] = field(default_factory=dict)

    def numbers(self) -> dict[str, Tensor]:
        """What is logged of it."""
        return {
            "influence/mean": self.influences.mean(),
            "influence/std": self.influences.std(correction=0),
            "influence/harmful": (self.influences > 0).float().mean(),
            "influence/validation_loss": self.validation_loss,
            "weights/batch_mean": self.weights.mean(),
            "weights/batch_std": self.weights.std(correction=0),
            **{f"weights/phi_{name}": value for name, value in self.phi.items()},
        }


class ExampleWeights(Table):
    """The weights λ_u ≥ 0, and how they move (Alg. 1, line 12).

    Values, the rule's state and the number of steps are part of ``state_dict``, rows only where they are not in a file.
    The rule's hyper-parameters are not: a resumed run follows its command line.

    Args:
        size: |U|, the number of rows.
        rule: How rows move; see :func:`~ssl_weighting.weighting.rules.make_rule`.
        init: Every weight's initial value (the paper: 1, or 5 with 250 labels).
        bounds: Smallest and largest value; weights are clamped after every step.
        shared: One weight for all examples (the paper's Fig. 4, left) instead of one each.
        sharded: Divide the rows among the processes.
        file: Keep the rows there and not in memory.
    """

    def __init__(
        self,
        size: int,
        rule: Rule,
        init: float = 1.0,
        bounds: tuple[float, float] = (0.0, float("inf")),
        shared: bool = False,
        sharded: bool = False,
        file: RowFile | None = None,
    ) -> None:
        file = None if shared else file
        columns = _weight_columns(float(init), rule.columns if file is None else MOMENTS)
        super().__init__(1 if shared else size, columns, sharded and not shared, file)
        self.examples, self.rule, self.bounds, self.shared, self.steps = size, rule, bounds, shared, 0

    def gather(self, rows: Tensor) -> Tensor:
        """λ of rows (B,) int64. Returns (B,)."""
        if self.shared:
            return self.column("values").expand(len(rows))
        (weights,) = self.read(rows, "values")
        return weights if self.file is None else weights.clamp(*self.bounds)

    def begin(self, values: Tensor) -> None:
        """Set all weights, (size,) float32 or (1,) where they are one."""
        every = torch.arange(len(values))
        for some in torch.split(every, CHUNK):
            self.update(some, ["values"], lambda _: [values[some].clamp(*self.bounds)])  # noqa: B023

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, examples: int | None = None) -> None:
        """Move rows (B,) against ``gradient`` (B,); rows named twice have theirs summed.

        A shared weight takes the mean over the examples of their summed gradients. All processes hand over the same.

        Args:
            rows: int64: once an example and loss term.
            gradient: Derivatives in the rows' weights.
            examples: How many examples they are of; default B, as of one term.
        """
        self.steps += 1
        gradient = gradient.to(self.column("values"))
        if self.shared:
            rows, gradient = torch.zeros_like(rows[:1]), gradient.sum()[None] / (examples or len(rows))
        self._check(rows)
        rows, place = torch.unique(rows, return_inverse=True)
        gradient = gradient.new_zeros(len(rows)).index_add_(0, place, gradient)
        if self.world > 1:
            gradient = torch.where(self.holds(rows), gradient, 0)
        if self.rule.dense:
            every = torch.zeros_like(self.column("values"))
            gradient = every.index_add_(0, self.place(rows), gradient)

        def change(values: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
            moved, moments = self.rule.update(values.clamp(*self.bounds), gradient, moments, self.steps)
            return moved.clamp(*self.bounds), moments

        self.update(None if self.rule.dense else rows, ("values", "moments"), change)

    def note(self, predictions: Sequence[Predictions], stats: ExampleStats) -> None:
        """Nothing: a weight of its own follows its influence alone."""

    def told(self) -> dict[str, Tensor]:
        """Nothing: there are no parameters."""
        return {}

    def fit_state(self, state: dict[str, Any], prefix: str, updates: Tensor | None) -> None:
        """Fit rows of a checkpoint to the bounds and to the rule that hold now.

        Args:
            state: This process's rows, by names that begin with ``prefix``; is changed.
            prefix: Of this table's names.
            updates: (n,), how often each row moved; ``None`` where ``state`` is of something else.
        """
        if f"{prefix}values" not in state or updates is None:
            return  # which loading it says
        state[f"{prefix}values"] = state[f"{prefix}values"].clamp(*self.bounds)
        moments, columns = state[f"{prefix}moments"], self.column("moments").shape[1]
        if moments.shape[1] != columns:
            counts = state[f"{prefix}_extra_state"]["steps"] if self.shared else updates
            state[f"{prefix}moments"] = fitted_moments(moments, columns, counts)

    def get_extra_state(self) -> dict[str, int]:
        """The number of steps, for ``state_dict``."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take the number of steps from a ``state_dict``."""
        self.steps = state["steps"]


class Weighting(nn.Module):
    """Λ and all that learns it. Knows no trainer and no data; rows of Λ are all that it hears of examples.

    Args:
        options: How Λ is learned, and where it is kept.
        influence: How dL(V')/dλ_u is approximated.
        learns: Whether there is a Λ to learn: not where a method looks at no unlabelled example.
    """

    weights: ExampleWeights | EvidenceWeights
    stats: ExampleStats

    def __init__(self, options: WeightingOptions, influence: Influence, learns: bool = True) -> None:
        super().__init__()
        self.options, self.influence = options, influence
        self.learns = learns and options.kind != "fixed"

    @property
    def size(self) -> int:
        """|U|, the number of rows."""
        return self.weights.examples

    @property
    def file(self) -> RowFile | None:
        """Where rows are kept if not in memory."""
        return self.stats.file

    def allocate_in(self, folder: Path, unlabeled: Tensor, fits: bool, strategy: Strategy) -> None:
        """Rows for all unlabelled examples; those on the disk are the run's own, and a checkpoint holds none of them.

        Args:
            folder: The run's.
            unlabeled: (|U|,) int64, the unlabelled examples' rows in the data set.
            fits: Whether they are learned now.
            strategy: Of the trainer, whose processes share a file.
        """
        size = len(unlabeled)
        if self.options.storage != "disk":
            self.allocate(size)
        else:
            defaults = row_defaults(self.options.init, self.options.kind)
            self.allocate(size if fits else 0, open_rows(folder, size, defaults, strategy) if fits else None)
        if fits and self.options.weights is not None:
            assert isinstance(self.weights, ExampleWeights)
            values = read_weights(self.options.weights, unlabeled)
            self.weights.begin(values if self.options.kind != "single" else values.mean()[None])

    def allocate(self, size: int, file: RowFile | None = None) -> None:
        """Make room for |U| rows; does nothing the second time."""
        if hasattr(self, "weights"):
            return
        o, sharded = self.options, self.options.storage == "sharded"
        if o.kind == "evidence":
            rule = make_rule("sgd" if o.optimizer == "sgd" else "adam", o.lr)
            self.weights = EvidenceWeights(size, rule, o.lr * o.prior, o.init, o.bounds, sharded, file)
        else:
            moves = o.optimizer if o.kind != "fixed" else "sgd"  # which keeps no state
            rule = make_rule(moves, o.lr, o.bias_correction)
            self.weights = ExampleWeights(size, rule, o.init, o.bounds, o.kind == "single", sharded, file)
        self.stats = ExampleStats(size, sharded, file, len(row_defaults(o.init, o.kind)) - len(COLUMNS))

    def due(self, step: int) -> bool:
        """Whether a Λ step follows θ step number ``step``: after the warm-up, and N since the last one (line 3)."""
        since = step - self.options.warmup_steps
        return self.learns and since > 0 and since % self.options.inner_steps == 0

    def steps_due(self, step: int) -> int:
        """How many Λ steps have come by the one that follows θ step ``step``."""
        return (step - self.options.warmup_steps) // self.options.inner_steps

    def weighted(self, terms: list[LossTerm]) -> Objective:
        """Terms with the λ of their examples: L(D', U', θ, Λ)."""
        return Objective(terms, [None if t.row is None else self.weights.gather(t.row) for t in terms])

    def note(self, predictions: Sequence[Predictions]) -> None:
        """Note what examples of a batch were compared to. Each process hands over what it saw."""
        self.weights.note(predictions, self.stats)
        self.stats.update_predictions(predictions)

    @torch.no_grad()
    def step(self, network: Network, objective: Objective, validation: LossTerm) -> Update:
        """λ_u ← λ_u − η ∂L_S(V', θ*(Λ))/∂λ_u for the u in U', lines 9 to 12 (Eq. 4 and 6).

        Args:
            network: The classifier at the present θ.
            objective: L(D', U', θ, Λ).
            validation: L_S(V', θ).

        Raises:
            NonFiniteError: If an influence is not finite; Λ then stays as it is.
        """
        terms = [term for term in objective.terms if term.row is not None]
        refused: NonFiniteError | None = None
        try:
            influences = self.influence(network, objective, validation)  # lines 9 to 11
        except NonFiniteError as error:  # the other processes are told below, and must not wait for this one
            refused, influences = error, [term.mask * torch.nan for term in terms]
        rows = torch.cat([term.row for term in terms])  # type: ignore[misc]
        masks = [torch.ones_like(t.mask) if self.options.update_masked else t.mask for t in terms]
        gradient = torch.cat([mask * influence for mask, influence in zip(masks, influences, strict=True)])
        examples = len(terms[0].mask) * process_count()
        rows, gradient = all_processes(rows), all_processes(gradient)  # the same Λ step everywhere
        if not gradient.isfinite().all():
            raise refused or NonFiniteError("the influence is not finite")
        self.note(predictions_of(objective))
        self.weights.step(rows, gradient, examples)  # line 12
        self.stats.update_influences(rows, gradient)
        return Update(gradient, self.weights.gather(rows), validation.loss(), self.weights.told())

    # ---- what others look at -------------------------------------------------------------------------------

    def sampled(self) -> Tensor:
        """Rows of the unlabelled examples that statistics look at: all, or an even sample of about 2**20."""
        return torch.arange(0, self.size, -(-self.size // SAMPLE))

    @torch.no_grad()
    def known(self, rows: Tensor) -> tuple[Tensor, Statistics]:
        """λ of some rows (n,), on the CPU, and what happened to them, (n,) each.

        With weights that are sharded every process must ask.
        """
        rows = rows.to(self.stats.column("confidence").device)
        weights, stats = self.weights.gather(rows), self.stats.gather(rows)
        return weights.cpu(), Statistics(*(column.cpu() for column in stats))

    def _each(
        self,
        change: Callable[[Table], Callable[[dict[str, Any]], dict[str, Any]]],
        state: dict[str, Any],
        prefix: str,
    ) -> None:
        for name, table in (("weights.", self.weights), ("stats.", self.stats)):
            own = {key: value for key, value in state.items() if key.startswith(prefix + name)}
            state.update(change(table)(own))

    def gather_state(self, state: dict[str, Any], prefix: str) -> None:
        """Put the rows of all processes into a ``state_dict`` whose names of this module begin with ``prefix``."""
        self._each(lambda table: table.whole, state, prefix)

    def scatter_state(self, state: dict[str, Any], prefix: str) -> None:
        """Leave of the rows in a ``state_dict`` this process's own, in the form that the options now ask for."""
        self._each(lambda table: table.own, state, prefix)
        self.weights.fit_state(state, f"{prefix}weights.", state.get(f"{prefix}stats.updates"))


def fitted_moments(moments: Tensor, columns: int, counts: Tensor | int) -> Tensor:
    """Moments of Λ for a rule that keeps another number of them.

    Args:
        moments: (n, M): running mean, running mean square and, with M = 3, how often the row moved.
        columns: Numbers that the rule keeps for a row.
        counts: (n,), how often each row moved, in all.

    Returns:
        (n, columns): what both know; a count that was not kept is taken from ``counts``, other moments begin at 0.
    """
    kept = moments[:, :columns]
    more = moments.new_zeros(len(moments), columns - kept.shape[1])
    if moments.shape[1] == 2 and more.shape[1]:
        more[:, 0] = torch.as_tensor(counts).to(more)
    return torch.cat((kept, more), 1)
