"""Keys and passwords, kept out of every copy of a configuration."""

from __future__ import annotations

import re
from typing import Any

_NAME = re.compile(r"(^|_)(api_?key|access_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def without_secrets(config: Any) -> Any:
    """A configuration without what looks like a secret.

    Entries that are named like one (``api_key``, ``hf_token``, ``password`` …) and hold text are left out, so that a run
    started from the copy looks for them where the first one should have: in the environment. User names and passwords
    are cut out of addresses.

    Args:
        config: Nested dictionaries, lists and scalars.
    """
    if isinstance(config, dict):
        return {
            key: without_secrets(value)
            for key, value in config.items()
            if not (isinstance(value, str) and value and _NAME.search(str(key)))
        }
    if isinstance(config, (list, tuple)):
        return [without_secrets(value) for value in config]
    return _USERINFO.sub("", config) if isinstance(config, str) else config
