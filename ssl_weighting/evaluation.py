"""Error and loss of the averaged θ on a list of labelled examples."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric


class Evaluation(nn.Module):
    """Means over all examples that it is shown, whatever their batches and processes."""

    def __init__(self) -> None:
        super().__init__()
        self.error, self.loss = MeanMetric(), MeanMetric()

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """See a batch: probabilities (B, C) and labels (B,) int64."""
        self.error.update((probabilities.argmax(-1) != labels).float())
        self.loss.update(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels, reduction="none"))

    def compute(self) -> dict[str, Tensor]:
        """``error``, a share, and ``loss``, cross-entropy in nats; scalars over all processes. Starts anew."""
        found = {"error": self.error.compute(), "loss": self.loss.compute()}
        self.error.reset()
        self.loss.reset()
        return found

    @property
    def seen(self) -> bool:
        """Whether there was a batch since the last time."""
        return bool(self.error.update_called)
