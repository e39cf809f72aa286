"""Files of paraphrases: UDA's, a line a text, and parquet with each text beside its paraphrase."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_weighting.errors import UserError, one_line
from ssl_weighting.files import home_path

MIN_LENGTH = 10
MAX_CHANGE = 0.5


def read_paraphrases(path: Path, texts: pa.Array) -> pa.Array:
    """A paraphrase for every text.

    As in UDA's code, a text stands for itself where it or its paraphrase has fewer than 10 characters, or where
    their lengths differ by more than half of the text's. So it does where a parquet file does not know it.

    Args:
        path: ``.parquet`` with the columns ``text`` and ``paraphrase``, or any other ending: a paraphrase a line, in
            the order of the texts.
        texts: (n,), the training texts, cleaned.

    Returns:
        Strings (n,).

    Raises:
        UserError: If it cannot be read, or is not of these texts.
    """
    path = home_path(path)
    originals = texts.to_pylist()
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path, columns=["text", "paraphrase"]).to_pydict()
            known = dict(zip(table["text"], table["paraphrase"], strict=True))
            found = [known.get(text) for text in originals]
            if originals and not any(p is not None for p in found):
                raise UserError(f"data.paraphrases={path}: has a paraphrase of none of the training texts")
        else:
            found = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
            if found and not found[-1]:
                found.pop()
            if len(found) != len(originals):
                raise UserError(
                    f"data.paraphrases={path}: has {len(found)} lines, and there are {len(originals)} training texts; "
                    "it needs a line for each, in their order"
                )
    except FileNotFoundError:
        raise UserError(
            f"data.paraphrases={path}: no such file; `ssl-weighting paraphrase` makes one"
        ) from None
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(f"data.paraphrases={path}: cannot be read ({one_line(error)[:160]})") from None
    chosen = [
        text if new is None else _checked(text, new) for text, new in zip(originals, found, strict=True)
    ]
    return pa.array(chosen, pa.large_string())


def _checked(text: str, new: str) -> str:
    if min(len(text), len(new)) < MIN_LENGTH or abs(len(new) - len(text)) > MAX_CHANGE * len(text):
        return text
    return new
