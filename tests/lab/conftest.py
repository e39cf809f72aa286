"""What several claims are tried on."""

import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path):
    """Features of ten classes in clusters, as the frozen claims read CIFAR-10's."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(10, 16)) * 2
    for name, count in (("data_batch_1", 900), ("test_batch", 300)):
        labels = generator.integers(0, 10, count)
        features = (centres[labels] + generator.normal(size=(count, 16))).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", features=features, labels=labels)
    return tmp_path
