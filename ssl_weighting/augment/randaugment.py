"""RandAugment in the two versions that semi-supervised learning uses: FixMatch's and UDA's."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssl_weighting.augment.base import ImageAugmentation
from ssl_weighting.augment.ops import apply_ops


class _Strength(NamedTuple):
    at: Callable[[int], float]  # magnitude, in the unit of the operation, at level 1 to 9
    signed: bool = False  # whether the sign is drawn too


def _full(level: int) -> float:
    return 1.0


def _enhance(level: int) -> float:
    return 0.1 + 0.18 * level


# The released code of UDA (image/randaugment/augmentation_transforms.py, commit 960684e) and of FixMatch
# (third_party/auto_augment/augmentations.py, commit d4985a1); both took it from AutoAugment's.
_SHARED = {
    "autocontrast": _Strength(_full),
    "equalize": _Strength(_full),
    "rotate": _Strength(lambda level: 3 * level, signed=True),
    "solarize": _Strength(lambda level: 256 - int(level * 256 / 10)),
    "color": _Strength(_enhance),
    "contrast": _Strength(_enhance),
    "brightness": _Strength(_enhance),
    "sharpness": _Strength(_enhance),
    "shear_x": _Strength(lambda level: 0.03 * level, signed=True),
    "shear_y": _Strength(lambda level: 0.03 * level, signed=True),
    "translate_x": _Strength(lambda level: level / 32, signed=True),
    "translate_y": _Strength(lambda level: level / 32, signed=True),
    "posterize": _Strength(lambda level: 4 - int(level * 4 / 10)),
}
_POLICIES = {
    "fixmatch": {"identity": _Strength(_full), **_SHARED},
    "uda": {"invert": _Strength(_full), "cutout": _Strength(lambda level: 2 * level / 32), **_SHARED},
}


class RandAugment(ImageAugmentation):
    """Two operations for each image, drawn with replacement, each applied with probability 1/2.

    Each has a level m from 1 to 9, drawn uniformly:

    ======================================  =======================================================
    operation                               strength at level m
    ======================================  =======================================================
    autocontrast, equalize                  none
    brightness, color, contrast, sharpness  factor 0.1 + 0.18 m (0.28 to 1.72)
    posterize                               4 - int(0.4 m) bits kept (4 to 1)
    rotate                                  3 m degrees, either way
    shear_x, shear_y                        0.03 m, either way
    solarize                                levels from 256 - int(25.6 m) up are inverted
    translate_x, translate_y                m pixels of 32, either way
    identity                                FixMatch only
    invert                                  UDA only
    cutout                                  UDA only; side of 2 m pixels of 32
    ======================================  =======================================================

    "Pixels of 32" are fractions of the images' own width (``translate_y``: height), so that m moves an image
    8 wide by m/4 pixels, to the nearest. ``posterize`` follows the released code; the AutoAugment paper's
    table keeps 4 to 8 bits.

    The 16-pixel cutout that ends both methods' strong view is :class:`~ssl_weighting.augment.Cutout`. The
    released code paints uncovered pixels grey after the second operation, this class at once, so that a
    second operation may recolour them.

    Args:
        policy: ``"fixmatch"`` (14 operations) or ``"uda"`` (15).

    Raises:
        ValueError: if ``policy`` is neither.
    """

    settings = ("policy",)

    def __init__(self, policy: Literal["fixmatch", "uda"] = "fixmatch") -> None:
        super().__init__()
        if policy not in _POLICIES:
            raise ValueError(f"policy must be one of {sorted(_POLICIES)}, got {policy!r}")
        strengths = _POLICIES[policy]
        self.policy = policy
        self.names = tuple(strengths)
        table = [[strength.at(level) for level in range(1, 10)] for strength in strengths.values()]
        # On the CPU whatever the images' device: how many drew an operation is then known without a wait.
        self.table = torch.tensor(table)
        signed = [strength.signed for strength in strengths.values()]
        self.signed = torch.tensor(signed)

    def augment(self, images: Tensor) -> Tensor:
        """Augment each image by its own two operations."""
        return apply_ops(images, self.names, *self.draw(len(images)))

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Draw the policies of ``batch`` images, on the CPU.

        Returns:
            Positions in ``names``, int64 (2, batch), -1 where the operation is not applied, and the
            magnitudes, float32 (2, batch), signs included.
        """
        shape = (2, batch)
        choice = torch.randint(len(self.names), shape)
        magnitude = self.table[choice, torch.randint(self.table.shape[1], shape)]
        negative = self.signed[choice] & (torch.rand(shape) < 0.5)
        applied = torch.rand(shape) < 0.5
        return torch.where(applied, choice, -1), torch.where(negative, -magnitude, magnitude)
