"""CTAugment: augmentation whose strengths are learned while training (Berthelot et al. 2020, ReMixMatch)."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_weighting.augment.base import ImageAugmentation
from ssl_weighting.augment.ops import RESCALE_METHODS, apply_ops, check_images, cutout


class _Range(NamedTuple):
    bins: int
    low: float  # magnitude, in the unit of the operation, at level 0
    high: float  # and at level 1, which is never reached


# FixMatch's operations and ranges (libml/ctaugment.py, commit d4985a1). rescale stands last, for its second
# parameter, the resampling filter, picks the operation that is called.
_RANGES = {
    "identity": _Range(0, 0, 0),
    "autocontrast": _Range(17, 0, 1),
    "blur": _Range(17, 0, 1),
    "brightness": _Range(17, 0.1, 2),
    "color": _Range(17, 0.1, 2),
    "contrast": _Range(17, 0.1, 2),
    # Rounded by the operation to 1 + int(15.968 level) pixels of 32.
    "cutout": _Range(17, 0.5 / 32, 16.468 / 32),
    "equalize": _Range(17, 0, 1),
    "invert": _Range(17, 0, 1),
    "posterize": _Range(8, 1, 8.999),
    "rotate": _Range(17, -45, 45),
    "sharpness": _Range(17, 0.1, 2),
    "shear_x": _Range(17, -0.3, 0.3),
    "shear_y": _Range(17, -0.3, 0.3),
    "smooth": _Range(17, 0, 1),
    "solarize": _Range(17, 0, 255.999),
    "translate_x": _Range(17, -0.3, 0.3),
    "translate_y": _Range(17, -0.3, 0.3),
    "rescale": _Range(17, 0, 0.25),
}
_RESCALE = len(_RANGES) - 1
_CALLED = (*list(_RANGES)[:_RESCALE], *(f"rescale_{method}" for method in RESCALE_METHODS))


class ProbeRecord(NamedTuple):
    """What :meth:`CTAugment.probe` did, for :meth:`CTAugment.update`."""

    operations: Tensor
    """int64 (B, depth): positions in ``CTAugment.operations``."""
    bins: Tensor
    """int64 (B, depth, 2): the bin of each parameter; -1 where the operation has no such parameter."""


class CTAugment(ImageAugmentation):
    """Two operations for each image, of strengths at which the model still recognises the image.

    Every parameter of an operation has its range cut into bins, and every bin has a rate in [0, 1], first 1,
    in the buffer ``rates``: (operations, 2, 17), 0 where there is no such bin. A bin's probability is
    proportional to its rate plus 1 - decay, or 0 if that is less than ``threshold`` of the largest of its
    parameter; the level is uniform within the bin. Operations are drawn uniformly, with replacement.
    :meth:`augment` ends with a cutout of half the width.

    To learn: augment labelled images by :meth:`probe`, show them to the model, and give its probabilities to
    :meth:`update`.

    The 19 operations and the ranges of their one parameter, in 17 bins where nothing else is said:

    ==============================================  ==============================================
    operation                                       from level 0 to level 1
    ==============================================  ==============================================
    autocontrast, blur, equalize, invert, smooth    share of the result, 0 to 1
    brightness, color, contrast, sharpness          factor 0.1 to 2
    cutout                                          side of 1 to 16 pixels of 32 (a fraction of the width)
    identity                                        no parameter
    posterize                                       1 to 8 bits kept (8 bins)
    rescale                                         0 to 1/4 cropped from each side, and enlarged again by
                                                    the filter that a second parameter picks (6 bins)
    rotate                                          -45 to 45 degrees
    shear_x, shear_y                                -0.3 to 0.3
    solarize                                        threshold 0 to 255
    translate_x, translate_y                        -0.3 to 0.3 of the width, of the height
    ==============================================  ==============================================

    Where this differs from FixMatch's released code, on purpose:

    - ``translate`` moves by fractions of the image, as the paper says; theirs by 0.3 pixels, hence never.
    - The bin drawn is the bin updated; theirs takes 0.999 of the level, which at times is in the bin below.
    - A bin hit several times in a batch has one update that no order of examples changes (:meth:`update`).
    - Uncovered pixels are grey, theirs black. Angles are not rounded to whole degrees.
    - The ``rescale`` filter that Pillow called ANTIALIAS is LANCZOS, its present name.

    Args:
        depth: operations for each image.
        threshold: relative rate below which a bin is not drawn.
        decay: share of its old rate that a bin keeps at an update.

    Raises:
        ValueError: if an argument is out of its range.
    """

    rates: Tensor
    bin_counts: Tensor
    ranges: Tensor

    settings = ("depth", "threshold", "decay")

    def __init__(self, depth: int = 2, threshold: float = 0.8, decay: float = 0.99) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be 1 or more operations, got {depth}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], the range of relative rates, got {threshold}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}; 1 would never learn")
        self.depth = depth
        self.threshold = threshold
        self.decay = decay
        self.operations = tuple(_RANGES)
        counts = torch.tensor([[r.bins, 0] for r in _RANGES.values()])
        counts[_RESCALE, 1] = len(RESCALE_METHODS)
        self.register_buffer("bin_counts", counts, persistent=False)
        ranges = torch.tensor([[r.low, r.high] for r in _RANGES.values()])
        self.register_buffer("ranges", ranges, persistent=False)
        exists = torch.arange(int(counts.max())) < counts[:, :, None]
        self.register_buffer("rates", exists.float())

    def augment(self, images: Tensor) -> Tensor:
        """Augment each image by operations drawn from the rates, then cut a square of half its width out."""
        augmented = self._augment(images, *self.draw(len(images)))
        return cutout(augmented, torch.full(images.shape[:1], 0.5, device=images.device))

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draw the operations and bins of ``batch`` images from the rates.

        Returns:
            Positions in ``operations``, int64 (batch, depth), and the bin of each of their two parameters,
            int64 (batch, depth, 2), 0 for those that do not exist.
        """
        operations = self._draw_operations(batch)
        cumulative = self.probabilities().cumsum(-1)
        # Scaled by their own sum the last bin's is exactly 1, so that a draw below 1 always finds a bin.
        cumulative /= cumulative[..., -1:].clone().masked_fill_(self.bin_counts[:, :, None] == 0, 1)
        uniform = torch.rand(*operations.shape, 2, 1, device=operations.device)
        bins = (cumulative[operations] <= uniform).sum(-1)
        return operations, bins.masked_fill_(self.bin_counts[operations] == 0, 0)

    def probe(self, images: Tensor) -> tuple[Tensor, ProbeRecord]:
        """Augment each image by operations and strengths drawn uniformly, whatever the rates.

        Args:
            images: float32 (B, C, H, W) in [0, 1], C = 1 or 3.

        Returns:
            The augmented images, float32 (B, C, H, W) in [0, 1], without a final cutout, and what was done.

        Raises:
            ValueError: if ``images`` has another shape or type.
        """
        check_images(images)
        operations = self._draw_operations(len(images))
        counts = self.bin_counts[operations]
        bins = (torch.rand(counts.shape, device=counts.device) * counts).long()
        augmented = self._augment(images, operations, bins)
        return augmented, ProbeRecord(operations, bins.masked_fill(counts == 0, -1))

    @torch.no_grad()
    def update(self, record: ProbeRecord, probabilities: Tensor, targets: Tensor) -> None:
        """Move the rates of the bins that a probe used towards how well the model recognised its images.

        One image of proximity q = 1 - ||p - onehot(target)||_1 / 2 moves a rate r to decay r + (1 - decay) q.
        A bin used k times in the batch goes to decay^k r + (1 - decay^k) mean(q), the mean of k such steps
        over all orders in which they may come. With several processes (``torch.distributed``) the batch is
        that of all of them, so that their rates stay equal; each must then call this.

        Args:
            record: what :meth:`probe` returned.
            probabilities: (B, classes), the model's for the probed images; rows sum to 1.
            targets: int64 (B,), their classes.

        Raises:
            ValueError: if the three are not of the same batch.
        """
        operations, bins = record
        if not len(operations) == len(probabilities) == len(targets):
            raise ValueError(
                f"record, probabilities and targets must be of one batch, got {len(operations)}, "
                f"{len(probabilities)} and {len(targets)} examples"
            )
        # For probabilities that sum to 1, the proximity to a one-hot target is the target's probability.
        proximity = probabilities.to(self.rates).gather(1, targets[:, None])[:, :, None].expand(bins.shape)
        parameters, width = self.rates.shape[1:]
        parameter = operations[:, :, None] * parameters + torch.arange(parameters, device=bins.device)
        used = (bins >= 0).to(self.rates).flatten()
        index = (parameter * width + bins.clamp(min=0)).flatten()
        sums = self.rates.new_zeros(2, self.rates.numel())
        sums.index_add_(1, index, torch.stack([used, used * proximity.flatten()]))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        hits, total = sums.view(2, *self.rates.shape)
        kept = self.decay**hits
        self.rates.mul_(kept).add_((1 - kept) * total / hits.clamp(min=1))

    def probabilities(self) -> Tensor:
        """Return the probability of each bin, float32 (operations, 2, bins); 0 where there is no such bin."""
        exists = torch.arange(self.rates.shape[2], device=self.rates.device) < self.bin_counts[:, :, None]
        p = (self.rates + (1 - self.decay)) * exists
        p = p / p.amax(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        p = p.masked_fill(p < self.threshold, 0)
        return p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)

    def _draw_operations(self, batch: int) -> Tensor:
        return torch.randint(len(_RANGES), (batch, self.depth), device=self.rates.device)

    def _augment(self, images: Tensor, operations: Tensor, bins: Tensor) -> Tensor:
        first, method = bins.unbind(-1)
        count = self.bin_counts[operations, 0].clamp(min=1)
        level = (first + torch.rand(first.shape, device=first.device)) / count
        low, high = self.ranges[operations].unbind(-1)
        called = operations + method * (operations == _RESCALE)
        return apply_ops(images, _CALLED, called.mT, (low + (high - low) * level).mT)
