"""Several ways of the same numbers, side by side and beside one batch forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from lab.speed.timing import Call, Options, Row, medians, peaks, report, say_missing

REFERENCES = ("forward + backward", "forward + backward, channels last")


def references(options: Options, build: Callable[[Options, bool], Call]) -> dict[str, Callable[[], Call]]:
    """The references by name, the second for images alone.

    Args:
        options: What to measure.
        build: Makes one of them, of the options and whether channels come last.
    """
    layouts = (False, True) if options.network.startswith("wrn") else (False,)
    return {
        name: partial(build, options, channels_last)
        for name, channels_last in zip(REFERENCES, layouts, strict=False)
    }


def compare(
    options: Options,
    make_calls: Callable[[Options], Mapping[str, Callable[[], Call]]],
    errors: Callable[[Options], Mapping[str, float]],
    title: str,
    peers: Iterable[str],
) -> list[Row]:
    """Measure, print and save.

    Args:
        options: What to measure.
        make_calls: What is measured, by ``name | scope``, the references among them.
        errors: Of some of these, by the same names.
        title: Of the table.
        peers: Packages that are measured where they are installed.

    Returns:
        The rows, the references first; ratios are to the faster of these.
    """
    calls = {name: build() for name, build in make_calls(options).items()}
    seconds = medians(calls, options)
    memory = peaks(make_calls, list(calls), options)
    reference = min(seconds[name] for name in REFERENCES if name in seconds)
    known = errors(options)
    rows = []
    for name in calls:
        method, _, scope = name.partition(" | ")
        ratio = seconds[name] / reference
        rows.append(Row(method, scope or "all", seconds[name], ratio, memory[name], known.get(name)))
    if options.network.startswith("wrn"):
        say_missing(peers)
    report(title, rows, reference, options)
    return rows
