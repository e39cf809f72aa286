"""The floor of a θ step: forward and backward passes of the images that a method's equations need, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_weighting.algorithms import Algorithm
from ssl_weighting.algorithms.base import paused_statistics
from ssl_weighting.algorithms.fixmatch import FixMatch
from ssl_weighting.algorithms.flexmatch import FlexMatch
from ssl_weighting.algorithms.freematch import FreeMatch
from ssl_weighting.algorithms.mean_teacher import MeanTeacher
from ssl_weighting.algorithms.mixmatch import MixMatch
from ssl_weighting.algorithms.pseudo_label import PseudoLabel
from ssl_weighting.algorithms.remixmatch import ReMixMatch
from ssl_weighting.algorithms.softmatch import SoftMatch
from ssl_weighting.algorithms.supervised import Supervised
from ssl_weighting.algorithms.uda import UDA
from ssl_weighting.algorithms.vat import VAT
from ssl_weighting.augment import CTAugment
from ssl_weighting.backbones.base import Classifier


class Passes(NamedTuple):
    """Forward passes by what follows them; each several numbers of images.

    Attributes:
        learn: A backward pass to θ.
        look: None: targets and probes.
        probe: A backward pass to the images (VAT).
    """

    learn: tuple[int, ...]
    look: tuple[int, ...] = ()
    probe: tuple[int, ...] = ()

    def images(self, device: torch.device) -> dict[int, Tensor]:
        """Random ones, ready for the network, by their number."""
        return {
            n: torch.randn(n, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
            for n in {n for kind in self for n in kind}
        }


def _joint(n: int, u: int, apart: bool) -> Passes:
    """Labelled, weak and strong views together; ``apart`` the weak ones by themselves, for targets only."""
    return Passes((n + u,), look=(u,)) if apart else Passes((n + 2 * u,))


class Method(NamedTuple):
    """A method and the passes of a batch of n labelled and u unlabelled examples.

    Attributes:
        make: The method with its default settings.
        passes: Of (n, u, whether views that only make targets go apart).
    """

    make: Callable[[], Algorithm]
    passes: Callable[[int, int, bool], Passes]


def _cta() -> Algorithm:
    return FixMatch(strong=[CTAugment()])


METHODS: dict[str, Method] = {
    "supervised": Method(Supervised, lambda n, u, apart: Passes((n,))),
    "pseudo_label": Method(PseudoLabel, lambda n, u, apart: Passes((n, u))),
    "vat": Method(VAT, lambda n, u, apart: Passes((n, u, u), probe=(u,))),
    "mean_teacher": Method(MeanTeacher, lambda n, u, apart: Passes((n, u), look=(u,))),
    "mixmatch": Method(MixMatch, lambda n, u, apart: Passes((n + 2 * u,), look=(2 * u,))),
    "remixmatch": Method(ReMixMatch, lambda n, u, apart: Passes((n + 9 * u, u, u), look=(u, n))),
    "uda": Method(UDA, _joint),
    "fixmatch": Method(FixMatch, _joint),
    "fixmatch_cta": Method(
        _cta, lambda n, u, apart: _joint(n, u, apart)._replace(look=(u, n) if apart else (n,))
    ),
    "flexmatch": Method(FlexMatch, _joint),
    "freematch": Method(FreeMatch, _joint),
    "softmatch": Method(SoftMatch, _joint),
}


def run_passes(network: Classifier, passes: Passes, images: dict[int, Tensor]) -> None:
    """The passes and nothing else; one backward pass for all that learn, as in a step."""
    with torch.no_grad():
        for n in passes.look:
            network(images[n])
    for n in passes.probe:
        inputs = images[n].clone().requires_grad_()
        torch.autograd.grad(network(inputs).logits.logsumexp(-1).sum(), inputs)
    with paused_statistics(network):
        losses = [network(images[n]).logits.float().logsumexp(-1).mean() for n in passes.learn]
        torch.autograd.backward(torch.stack(losses).sum())
    network.zero_grad()
