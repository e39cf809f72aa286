"""What is said where something is refused."""

import pytest

from ssl_weighting.data import SSLData
from ssl_weighting.errors import UserError


def refused(data: SSLData, train: bool = True) -> str:
    """The line that a data set says instead of loading what lies in its ``root``."""
    with pytest.raises(UserError) as error:
        data.load(train)
    message = str(error.value)
    assert message.startswith(f"data.root={data.root}: ")
    assert "\n" not in message
    return message
