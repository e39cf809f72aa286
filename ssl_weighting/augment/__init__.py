"""Augmentations: modules that map a batch of images to a batch of views, each image by its own random draw.

All take and return float32 (B, C, H, W) in [0, 1] with C = 1 or 3, draw from torch's global generator on the
images' device, and never modify their input. A view of a method is a tuple of them, applied in turn.
"""

from ssl_weighting.augment.ctaugment import CTAugment, ProbeRecord
from ssl_weighting.augment.cutout import Cutout
from ssl_weighting.augment.randaugment import RandAugment
from ssl_weighting.augment.weak import RandomFlipCrop

__all__ = ["CTAugment", "Cutout", "ProbeRecord", "RandAugment", "RandomFlipCrop"]
