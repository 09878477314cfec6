"""Colours and heat maps of a report, as SVG whose cells tell their numbers."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

# blue for the target, orange for the foil: told apart by people who see few colours, and in grey by what stands beside them
FOR, AGAINST = (33, 102, 172), (179, 88, 6)


def tint(value: float, most: float) -> str:
    """The colour of a value between -most and most: white for 0."""
    if most <= 0 or value != value:
        return "rgb(255,255,255)"
    share = min(1.0, abs(value) / most) ** 0.8
    return "rgb({},{},{})".format(*(round(255 + (part - 255) * share) for part in (FOR if value >= 0 else AGAINST)))


def ink(value: float, most: float) -> str:
    """The colour of writing on it."""
    return "#fff" if most > 0 and abs(value) > 0.55 * most else "#1d2328"


def heatmap(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    most: float | None = None,
    cell: tuple[int, int] = (22, 16),
) -> Markup:
    """A map of values [rows columns], the last row on top, as layers are thought of; of None nothing is known."""
    known = [abs(value) for row in values for value in row if value is not None]
    most = max(known, default=0.0) if most is None else most
    width, height = cell
    left = 8 + 6.4 * max(map(len, rows), default=0)
    slanted = any(len(name) > 2 for name in columns)
    bottom = (8 + 5.2 * min(14, max(map(len, columns), default=0))) if slanted else 18
    parts = [f'<g class="map"><title>{escape(title)}</title>']
    for number, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = (len(rows) - 1 - number) * height
        parts.append(f'<text x="{left - 5:.0f}" y="{y + height - 4}" text-anchor="end">{escape(name)}</text>')
        for at, value in enumerate(row):
            told = f"{name}, {columns[at]}: " + ("not known" if value is None else f"{value:+.3f}")
            fill = "#f3f4f5" if value is None else tint(value, most)
            parts.append(
                f'<rect x="{left + at * width:.0f}" y="{y}" width="{width - 1}" height="{height - 1}" fill="{fill}">'
                f"<title>{escape(told)}</title></rect>"
            )
    end = len(rows) * height
    for at, name in enumerate(columns):
        x = left + at * width + width / 2
        turned = f' transform="rotate(-60 {x:.0f} {end + 10})" text-anchor="end"' if slanted else ' text-anchor="middle"'
        parts.append(f'<text x="{x:.0f}" y="{end + 12}"{turned}>{escape(shortened(name))}</text>')
    parts.append("</g>")
    size = (left + len(columns) * width + 4, end + bottom)
    style = "font: 11px system-ui, sans-serif; fill: #66717a"
    return Markup(  # our own markup, of texts that are escaped
        f'<svg role="img" width="{size[0]:.0f}" height="{size[1]:.0f}" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" '
        f'style="{style}">{"".join(parts)}</svg>'
    )


def shortened(text: str, most: int = 14) -> str:
    """A token for an axis: its spaces seen, its middle left out where it is long."""
    seen = text.replace("\n", "\u23ce").replace("\t", "\u21e5")
    seen = "\u00b7" if not seen.strip(" ") and seen else seen.strip(" ")
    return seen if len(seen) <= most else f"{seen[: most - 1]}\u2026"
