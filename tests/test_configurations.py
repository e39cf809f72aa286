"""Any configuration trains two steps or is refused before, in one line."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.claims import random_configurations


@st.composite
def configurations(draw):
    return random_configurations.draw_configuration(lambda values: draw(st.sampled_from(values)))


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(configurations())
def test_trained_or_refused_in_one_line(configuration):
    with tempfile.TemporaryDirectory() as folder:
        outcome, said = random_configurations.attempt(configuration, Path(folder))
    assert outcome in ("trained", "refused", "stopped"), said
    if outcome == "stopped":  # only what no look at a configuration can tell
        assert any(word in said for word in ("not finite", "diverges", "damping", "residual", "curvature")), (
            said
        )
