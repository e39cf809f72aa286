"""Draws methods.svg, beside it: what every method compares an unlabelled example to."""

from html import escape
from pathlib import Path

# Method; how the target is made; the distance; how what is compared to it is made; what counts.
ROWS = [
    ("Pseudo-Label", ["weak", "θ", "argmax"], "H", ["weak, the same", "θ"], "where max p > τ"),
    ("VAT", ["weak", "θ"], "KL", ["weak", "+ r", "θ"], "all, and the entropy of weak"),
    ("Mean Teacher", ["weak 2", "average of θ"], "L2", ["weak 1", "θ"], "all"),
    ("MixMatch", ["K weak", "θ", "mean", "sharpen", "mix"], "L2", ["K weak", "mix", "θ"], "all"),
    ("UDA", ["weak", "θ", "sharpen"], "KL", ["strong", "θ"], "where max p > τ"),
    (
        "ReMixMatch",
        ["weak", "θ", "align", "sharpen", "mix"],
        "H",
        ["K strong", "mix", "θ"],
        "all, and rotations",
    ),
    ("FixMatch", ["weak", "θ", "argmax"], "H", ["strong", "θ"], "where max p ≥ τ"),
    ("FlexMatch", ["weak", "θ", "argmax"], "H", ["strong", "θ"], "where max p ≥ τ by class"),
    ("FreeMatch", ["weak", "θ", "argmax"], "H", ["strong", "θ"], "where max p ≥ learned τ by class"),
    ("SoftMatch", ["weak", "θ", "argmax"], "H", ["strong", "θ"], "by a Gaussian of max p"),
    ("OpenMatch", ["weak", "θ", "argmax"], "H", ["strong", "θ"], "inliers, and the one-vs-all head"),
    ("IOMatch", ["weak", "θ", "align"], "H", ["strong", "θ"], "inliers where max p ≥ τ, and C + 1 classes"),
]
WIDTH, TOP, ROW, MIDDLE, GAP = 1160, 70, 46, 560, 14
TARGET, SEEN, NETWORK = ("#dbe9f6", "#3b73af"), ("#fde6cf", "#c26a14"), ("#ffffff", "#222222")


def text(
    x: float, y: float, words: str, anchor: str = "start", weight: str = "normal", fill: str = "#111"
) -> str:
    """Words centred on the line y."""
    style = f'text-anchor="{anchor}" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x:.0f}" y="{y + 5}" {style}>{escape(words)}</text>'


def line(x1: float, x2: float, y: float) -> str:
    """A horizontal line."""
    return f'<line x1="{x1:.0f}" y1="{y}" x2="{x2:.0f}" y2="{y}" stroke="#222"/>'


def length(steps: list[str]) -> float:
    """Width of a chain."""
    return sum(20 + 7.4 * len(step) for step in steps) + GAP * (len(steps) - 1)


def chain(steps: list[str], x: float, y: float, colours: tuple[str, str]) -> list[str]:
    """Boxes from x on, joined by lines; networks are round."""
    parts = []
    for number, step in enumerate(steps):
        if number:
            parts.append(line(x, x + GAP, y))
            x += GAP
        width, network = length([step]), "θ" in step
        fill, stroke = NETWORK if network else colours
        place = f'x="{x:.0f}" y="{y - 14}" width="{width:.0f}" height="28" rx="{14 if network else 4}"'
        parts += [f'<rect {place} fill="{fill}" stroke="{stroke}"/>', text(x + width / 2, y, step, "middle")]
        x += width
    return parts


def main() -> None:
    """Write the picture."""
    height = TOP + ROW * len(ROWS)
    left, right = MIDDLE - 40, MIDDLE + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13" role="img" aria-label="What every method compares an unlabelled example to">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        text(16, 28, "method", weight="bold"),
        text(left, 28, "target, without gradient", "end", "bold"),
        text(MIDDLE, 28, "distance", "middle", "bold"),
        text(right, 28, "compared to it (read from the right)", weight="bold"),
        text(WIDTH - 16, 28, "what counts, times the example's λ", "end", "bold"),
    ]
    for number, (name, target, distance, seen, counts) in enumerate(ROWS):
        y = TOP + ROW * number + 8
        out += [
            text(16, y, name, weight="bold"),
            line(left, right, y),
            *chain(target, left - length(target), y, TARGET),
            f'<circle cx="{MIDDLE}" cy="{y}" r="17" fill="#222222"/>',
            text(MIDDLE, y, distance, "middle", fill="#ffffff"),
            *chain(seen[::-1], right, y, SEEN),
            text(WIDTH - 16, y, counts, "end"),
        ]
    Path(__file__).with_name("methods.svg").write_text("\n".join([*out, "</svg>\n"]), encoding="utf-8")


if __name__ == "__main__":
    main()
