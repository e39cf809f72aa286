"""What every augmentation module promises, and the weak view and cutout in particular."""

import pytest
import torch

from ssl_weighting.augment import CTAugment, Cutout, RandAugment, RandomFlipCrop

MODULES = {
    "weak": RandomFlipCrop,
    "weak digits": lambda: RandomFlipCrop(padding=1, flip=False),
    "cutout": Cutout,
    "cutout fraction": lambda: Cutout(0.3),
    "fixmatch": lambda: RandAugment("fixmatch"),
    "uda": lambda: RandAugment("uda"),
    "ctaugment": CTAugment,
}
SHAPES = [(3, 32, 32), (1, 8, 8), (3, 24, 40)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]

each_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
each_device = pytest.mark.parametrize("device", DEVICES)


@each_module
@each_device
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_views_keep_shape_type_and_range_and_leave_the_images_alone(module, device, shape):
    torch.manual_seed(0)
    images = torch.rand(48, *shape, device=device)
    before = images.clone()
    views = module().to(device)(images)
    assert views.shape == images.shape and views.dtype == torch.float32 and views.device == images.device
    assert views.min() >= 0 and views.max() <= 1
    assert torch.equal(images, before)
    assert views.data_ptr() != images.data_ptr()
    assert not torch.equal(views, images)


@each_module
@each_device
def test_copies_of_one_image_get_different_views(module, device):
    torch.manual_seed(0)
    copies = torch.rand(1, 3, 32, 32, device=device).expand(64, -1, -1, -1)
    views = module().to(device)(copies)
    assert len(views.unique(dim=0)) >= 9  # all that the weak view of digits has


@each_module
@each_device
def test_the_seed_determines_the_views(module, device):
    images, augment = torch.rand(32, 3, 32, 32, device=device), module().to(device)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(augment(images))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@each_module
@each_device
def test_autocast_changes_nothing(module, device):
    images, augment = torch.rand(64, 3, 32, 32, device=device), module().to(device)
    torch.manual_seed(0)
    expected = augment(images)
    torch.manual_seed(0)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(augment(images), expected)


@each_module
@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "float32"),
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(2, 8, 8, 3), "channels"),
    ],
    ids=["8-bit", "single", "channels last"],
)
def test_what_is_no_batch_of_images_is_refused(module, images, reason):
    with pytest.raises(ValueError, match=reason):
        module()(images)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RandomFlipCrop(padding=-1), "padding"),
        (lambda: RandomFlipCrop(padding=8)(torch.zeros(1, 1, 8, 8)), "set it to 7"),
        (lambda: Cutout(0), "size"),
        (lambda: Cutout(16.0), "size"),
        (lambda: Cutout(33), "size"),
        (lambda: RandAugment("autoaugment"), "fixmatch"),
        (lambda: CTAugment(depth=0), "depth"),
        (lambda: CTAugment(threshold=1.5), "threshold"),
        (lambda: CTAugment(decay=1.0), "decay"),
    ],
)
def test_unusable_arguments_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_weak_view_is_a_uniform_crop_of_the_reflected_image(padding, flip):
    torch.manual_seed(0)
    h, w, n = 7, 9, 4000
    image = torch.rand(1, 3, h, w)
    views = RandomFlipCrop(padding, flip)(image.expand(n, -1, -1, -1))
    padded = torch.nn.functional.pad(image, [padding] * 4, mode="reflect")[0]
    crops = padded.unfold(1, h, 1).unfold(2, w, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    possible = torch.cat([crops, crops.flip(-1)]) if flip else crops
    counts = torch.stack([(views == candidate).flatten(1).all(1).sum() for candidate in possible])
    assert counts.sum() == n  # every view is one of them
    expected = n / len(possible)
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = len(possible) - 1
    assert statistic <= freedom + 4 * (2 * freedom) ** 0.5


def test_cutout_scales_with_the_width():
    for size, width, side in [(16, 32, 16), (16, 8, 4), (0.25, 40, 10), (32, 8, 8)]:
        holes = Cutout(size)(torch.zeros(200, 1, width, width)) == 0.5
        assert holes.any(2).sum(-1).max() == side
