"""How well weights and confidence tell good unlabelled examples from bad ones, where the true labels are known."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ssl_weighting.module import SSLModule


class PoolQuality(Callback):
    """Logs how well λ, and the model's confidence, rank the unlabelled examples, at every validation.

    Over the examples seen so far whose true label is known, and was not trained on:

    - ``pool/pseudo_label_error``: share of wrong pseudo-labels among examples of the known classes;
    - ``pool/right_auroc_weight``, ``…_confidence``: area under the ROC curve of λ, and of the model's confidence, for
      right against wrong pseudo-labels among these;
    - ``pool/own_auroc_weight``, ``…_confidence``: the same for examples of the known against those of foreign classes.

    What does not exist (one kind of example only, no weight moved yet) is left out. Nothing learns from it.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures as they are now."""
        assert isinstance(pl_module, SSLModule)
        if trainer.sanity_checking:
            return
        numbers = pool_quality(pl_module)  # in every process: each has its part of sharded weights
        for logger in trainer.loggers if numbers else []:
            logger.log_metrics(numbers, step=trainer.global_step)


def pool_quality(module: SSLModule) -> dict[str, float]:
    """The figures that :class:`PoolQuality` logs."""
    positions = module.weighting.sampled()
    weights, record = module.weighting.known(positions)
    labels, guesses = module.data.judged_labels(positions), record.pseudo_label
    known = (labels >= 0) & (guesses >= 0)
    own = known & (labels < module.num_classes)
    right = guesses == labels
    scores = {"confidence": record.confidence}
    if bool((record.updates > 0).any()):
        scores["weight"] = weights.float()
    found = {"pool/pseudo_label_error": 1 - float(right[own].float().mean())} if bool(own.any()) else {}
    for name, score in scores.items():
        for kind, among, good in (("right", own, right), ("own", known, own)):
            area = auroc(score[among], good[among])
            if area is not None:
                found[f"pool/{kind}_auroc_{name}"] = area
    return found


def auroc(score: Tensor, good: Tensor) -> float | None:
    """Probability that a good example scores above a bad one, ties counting half; None where one kind lacks."""
    from sklearn.metrics import roc_auc_score  # slow to import

    return float(roc_auc_score(good.numpy(), score.numpy())) if 0 < int(good.sum()) < len(good) else None
