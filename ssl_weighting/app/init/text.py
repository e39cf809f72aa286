"""``init`` for texts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from ssl_weighting.app.init.choice import (
    LOOKED_AT,
    Choice,
    make_a_pool,
    set_up,
)
from ssl_weighting.app.init.columns import LABELS, TEXTS, choose_columns
from ssl_weighting.app.init.encoders import Found
from ssl_weighting.app.init.frozen import use_frozen
from ssl_weighting.data.module import SSLData
from ssl_weighting.errors import UserError
from ssl_weighting.guards import check_vocabulary

ENCODERS = {
    "cpu": "sentence-transformers/all-MiniLM-L6-v2",
    "cuda": "sentence-transformers/all-mpnet-base-v2",
}


def choose_for_texts(
    source: Path,
    test: Path | None,
    columns: Mapping[str, str | None],
    encoder: str,
    device: str,
    drop_test_leaks: bool = False,
) -> tuple[Choice, SSLData]:
    """Look at somebody's texts.

    Args:
        source: A table of texts and labels.
        test: As ``source``, or nothing.
        columns: Names of columns by option, as far as they were given.
        encoder: Hub name or folder.
        device: ``cpu`` or ``cuda``.
        drop_test_leaks: Whether near duplicates of test texts are left out of the pool.

    Returns:
        The choices, and the data set as the recipe will have it, split.

    Raises:
        UserError: If the texts are of no use, or there is no such encoder.
    """
    from ssl_weighting.backbones.transformer import Transformer
    from ssl_weighting.data.text import Text

    if source.is_dir():
        raise UserError(
            f"--text {source}: a folder, and texts are a table; of images, type --images {quote(str(source))}"
        )
    for key, path in (("--text", source), ("--test", test)):
        if path is not None and not path.is_file():
            raise UserError(f"{key} {path}: no such file")
    if Path(encoder).is_dir():
        encoder = str(Path(encoder).resolve())
    else:
        _require_hub(encoder)
    choice = Choice({"train": str(source.resolve())} | ({"test": str(test.resolve())} if test else {}))
    choose_columns(choice, (TEXTS, LABELS), columns, {"--text": source, "--test": test})
    choice.note(
        "encoder",
        encoder,
        "frozen; as given" if encoder not in ENCODERS.values() else f"frozen; fit for a {device.upper()}",
    )
    arguments: dict[str, Any] = {"name": encoder}
    if encoder.startswith("sentence-transformers/") or Path(encoder, "modules.json").is_file():
        arguments["pooling"] = "mean"
        choice.note("pooling", "mean", "a sentence encoder, which is trained for it")
    arguments["frozen"] = True
    choice.backbone = ("Transformer", arguments)
    choice.data |= {"num_validation": 0} | ({"drop_test_leaks": True} if drop_test_leaks else {})
    backbone = Transformer(**arguments)
    first = Text(**choice.data, tokenizer=encoder)
    texts, labels = first.read(train=True).texts, first.distinct_labels()
    if not (labels == -1).any():
        make_a_pool(
            choice,
            labels[labels >= 0],
            "rows with an empty label",
            given=bool((first.read(train=True).labels < 0).any()),
        )
    words = [len(text.as_py().split()) for text in texts[:: max(1, len(texts) // LOOKED_AT)]]
    pieces = 1.4 * statistics.quantiles(words, n=20)[-1] + 2 if len(words) > 1 else 64.0
    length = int(min(128 if device == "cpu" else 256, max(16, 8 * round(pieces / 8))))
    choice.data["max_length"] = length
    choice.note(
        "max_length",
        length,
        f"word pieces; half of the texts have up to {int(statistics.median(words))} words",
    )
    module = Text(**choice.data, tokenizer=encoder, split_seed=0)
    set_up(module, choice)
    check_vocabulary(backbone, module)
    use_frozen(choice, Found(backbone, choice.backbone), module, device)
    return choice, module


def _require_hub(encoder: str) -> None:
    """Refuse at once an encoder that is not on this machine while there is no network: transformers tries for minutes.

    Raises:
        UserError: With what to do instead.
    """
    import huggingface_hub  # slow to import

    if Path(encoder).is_absolute():
        raise UserError(f"--encoder {encoder}: no such folder")
    if huggingface_hub.try_to_load_from_cache(encoder, "config.json") is not None:
        return
    try:
        huggingface_hub.HfApi().model_info(encoder, timeout=10)
    except huggingface_hub.errors.HfHubHTTPError:
        return  # the hub answers; what it says is told when the encoder is read
    except Exception as error:  # its client's kinds of a missing network change from version to version
        raise UserError(
            f"--encoder {encoder}: not on this machine, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); give --encoder a folder that holds config.json, model.safetensors and the "
            "tokenizer's files"
        ) from None
