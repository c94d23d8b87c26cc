"""Plots as SVG text: pure functions from numbers to markup, without a library, scripts or state.

Horizontal positions are percentages and heights are pixels, so that one plot fits a phone and a wide screen with the
same font size. Colours are CSS variables of the page (light and dark). Every plot has a title and a description for
readers who cannot see it; the page puts tables beside them. Callers pass plain text, which is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Interval = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bar:
    """``value`` and ``interval`` are shares of the whole width, or None if there is nothing to show."""

    label: str
    value: float | None
    interval: Interval | None
    text: str
    aside: str = ""
    colour: str = "var(--ink)"
    mark: float | None = None
    """A second, minor figure, drawn as a hollow diamond."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A row of a waterfall: from ``start`` to ``end``, shares of the whole."""

    label: str
    start: float
    end: float
    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series; ``intervals`` are drawn as whiskers if given."""

    label: str
    points: Sequence[Point]
    colour: str
    intervals: Sequence[Interval] = ()


def bars(name: str, title: str, about: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0 to 100% with whiskers. The label and the figure are above each bar, left and right."""
    step, thick, body = 50, 14, []
    for index, row in enumerate(rows):
        y = 6 + index * step
        middle = y + 23 + thick / 2
        body.append(_text(0, y + 14, row.label, "label"))
        aside = f'<tspan class="aside">{_plain(row.aside)}</tspan>  ' if row.aside else ""
        body.append(f'<text x="100%" y="{y + 14}" class="value" text-anchor="end">{aside}{_plain(row.text)}</text>')
        body.append(_rect(0, y + 23, 1, thick, "var(--track)"))
        if row.value is not None:
            body.append(_rect(0, y + 23, row.value, thick, row.colour, f"{row.label}: {row.text} {row.aside}"))
        if row.interval:
            body.append(_whisker(row.interval, middle, 5))
        if row.mark is not None:
            body.append(_diamond(row.mark, middle, f"{row.label}, greedy: {100 * row.mark:.1f}%"))
    bottom = 6 + len(rows) * step
    for share in (0, 0.25, 0.5, 0.75, 1):
        if 0 < share < 1:
            body.insert(0, _vertical(share, 20, bottom - 6, "grid"))
        body.append(_text(share, bottom + 8, f"{100 * share:.0f}%", "tick", _anchor(share)))
    return _svg(name, title, about, bottom + 14, body)


def differences(name: str, title: str, about: str, rows: Sequence[Bar]) -> str:
    """Differences in points with their intervals, around a line at zero. ``value`` is in -1..1."""
    reach = max([0.1, *(abs(x) for row in rows for x in (row.interval or ()))])
    reach = math.ceil(reach * 10) / 10

    def across(value: float) -> float:
        return (value / reach + 1) / 2

    step, body = 52, []
    bottom = 4 + len(rows) * step
    for tick in (-reach, -reach / 2, 0, reach / 2, reach):
        if abs(tick) < reach:
            body.append(_vertical(across(tick), 20, bottom - 4, "zero" if tick == 0 else "grid"))
        text = "0" if tick == 0 else f"{100 * tick:+.0f}".replace("-", "−")
        body.append(_text(across(tick), bottom + 10, text, "tick", _anchor(across(tick))))
    for index, row in enumerate(rows):
        y = 4 + index * step
        body.append(_text(0, y + 14, row.label, "label"))
        aside = f'<tspan class="aside">{_plain(row.aside)}</tspan>  ' if row.aside else ""
        body.append(f'<text x="100%" y="{y + 14}" class="value" text-anchor="end">{aside}{_plain(row.text)}</text>')
        body.append(f'<line x1="0" x2="100%" y1="{y + 31}" y2="{y + 31}" class="rail"/>')
        if row.value is not None:
            if row.interval:
                body.append(_whisker((across(row.interval[0]), across(row.interval[1])), y + 31, 5))
            body.append(_dot(across(row.value), y + 31, 5, row.colour, f"{row.label}: {row.text} {row.aside}"))
    return _svg(name, title, about, bottom + 16, body)


def waterfall(name: str, title: str, about: str, rows: Sequence[Piece]) -> str:
    """A waterfall: each row takes something away, and the last row is what is left."""
    step, thick, body = 42, 12, []
    for index, row in enumerate(rows):
        y = 4 + index * step
        body.append(_text(0, y + 13, row.label, "label"))
        body.append(_text(1, y + 13, row.text, "value", "end"))
        body.append(_rect(0, y + 20, 1, thick, "var(--track)"))
        body.append(_rect(row.start, y + 20, row.end - row.start, thick, row.colour, f"{row.label}: {row.text}", 2))
        if 0 < index < len(rows) - 1:
            body.append(_vertical(row.start, y + 20 + thick, y + step + 20, "drop"))
    return _svg(name, title, about, 4 + len(rows) * step, body)


def curve(name: str, title: str, about: str, points: Sequence[Point], colour: str, height: int = 180) -> str:
    """One metric over steps, with a faint line for the raw values and a strong one for the smoothed. Ticks are in a
    gutter on the left."""
    values = [y for _, y in points]
    ticks = nice_ticks(min(values), max(values), 4 if height > 120 else 2)
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    last = points[-1][0]

    def place(series: Sequence[Point]) -> list[Point]:
        return [(x / (last or 1), _down(y, low, high, height)) for x, y in series]

    body = [_horizontal(_down(t, low, high, height), number(t)) for t in ticks]
    body.append(_polyline(place(points), colour, height, "faint"))
    body.append(_polyline(place(smoothed(points)), colour, height, "strong"))
    body.append(_text(0, height + 20, "step 0", "tick"))
    body.append(_text(1, height + 20, number(last), "tick", "end"))
    return _svg(name, title, about, height + 26, body, "plot gutter")


def slopes(name: str, title: str, about: str, categories: Sequence[str], lines: Sequence[Line]) -> str:
    """Shares (0 to 1) by category, one line per model, slightly shifted so that whiskers do not overlap."""
    height, body = 190, []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        body.append(_horizontal(_down(tick, 0, 1, height), f"{100 * tick:.0f}%"))
    width = 1 / max(len(categories), 1)
    for index, line in enumerate(lines):
        apart = (index - (len(lines) - 1) / 2) * min(0.14 * width, 0.03)
        places = [((x + 0.5) * width + apart, _down(y, 0, 1, height)) for x, y in line.points]
        body.append(_polyline(places, line.colour, height, "strong"))
        for (x, y), (_, share), (low, high) in zip(places, line.points, line.intervals, strict=True):
            ends = f'y1="{_down(low, 0, 1, height):.1f}" y2="{_down(high, 0, 1, height):.1f}"'
            body.append(f'<line x1="{_pc(x)}" x2="{_pc(x)}" {ends} stroke="{line.colour}" class="thin"/>')
            body.append(_dot(x, y, 4, line.colour, f"{line.label}: {100 * share:.1f}%"))
    for index, category in enumerate(categories):
        body.append(_text((index + 0.5) * width, height + 20, category, "tick", "middle"))
    return _svg(name, title, about, height + 26, body, "plot gutter")


def trade(
    name: str, title: str, about: str, lines: Sequence[Line], unit: str, span: tuple[float, float],
    marks: Sequence[float] = (),
) -> str:  # fmt: skip
    """Shares (0 to 1) against their cost on a logarithmic scale, one line per way to spend.

    ``span`` is the range of shares to show. ``marks`` are the costs with a tick, by default round numbers.
    """
    height, body = 230, []
    costs = [x for line in lines for x, _ in line.points]
    low, high, ticks = min(costs), max(costs), nice_ticks(*span, 5)
    bottom, top = ticks[0], ticks[-1]

    def across(cost: float) -> float:
        return 0.02 + 0.96 * (math.log(cost / low) / math.log(high / low) if high > low else 0.5)

    for tick in ticks:
        body.append(_horizontal(_down(tick, bottom, top, height), f"{100 * tick:.0f}%"))
    for tick in marks or doublings(low, high):
        body.append(_text(across(tick), height + 20, number(tick), "tick", _anchor(across(tick))))
    for line in lines:
        places = [(across(x), _down(y, bottom, top, height)) for x, y in line.points]
        body.append(_polyline(places, line.colour, height, "strong"))
        for (x, y), (cost, share), (least, most) in zip(places, line.points, line.intervals, strict=True):
            ends = f'y1="{_down(least, bottom, top, height):.1f}" y2="{_down(most, bottom, top, height):.1f}"'
            body.append(f'<line x1="{_pc(x)}" x2="{_pc(x)}" {ends} stroke="{line.colour}" class="thin"/>')
            body.append(_dot(x, y, 4, line.colour, f"{line.label}: {100 * share:.1f}% for {cost:,.0f} {unit}"))
    return _svg(name, title, about, height + 26, body, "plot gutter")


def doublings(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, 50... between two costs."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def histogram(
    name: str, title: str, about: str, right: Sequence[int], other: Sequence[int], colour: str, mean: float | None
) -> str:
    """Counts per bin, with right answers strong at the bottom and the rest pale on top. ``mean`` is a share of the
    width."""
    height, body = 74, []
    top = max([1, *(a + b for a, b in zip(right, other, strict=True))])
    width = 1 / len(right)
    for index, (good, bad) in enumerate(zip(right, other, strict=True)):
        tall, more = height * good / top, height * bad / top
        x, label = index * width, f"{good:,} right, {bad:,} not"
        if bad:
            body.append(_column(x, height - tall - more, width, more, colour, label, "pale"))
        if good:
            body.append(_column(x, height - tall, width, tall, colour, label, ""))
    body.append(f'<line x1="0" x2="100%" y1="{height}" y2="{height}" class="zero"/>')
    if mean is not None:
        body.append(_vertical(mean, 0, height, "mean"))
    return _svg(name, title, about, height + 2, body)


def scale(name: str, edges: Sequence[int]) -> str:
    """The axis below a column of histograms."""
    last = edges[-1]
    ticks = [t for t in nice_ticks(0, last, 5) if 0 <= t <= last]
    body = [_text(t / last, 14, number(t), "tick", _anchor(t / last)) for t in ticks]
    return _svg(name, "tokens per answer", f"axis from 0 to {last}", 20, body)


# -- numbers ----------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """About ``about`` round numbers that span ``low`` to ``high``."""
    raw = (high - low) / about
    if raw <= 1e-12 * max(abs(low), abs(high), 1e-280):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.14g}") for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number in short form: ``1,200``, ``0.05``, ``4e-05``."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.3g}"


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred mean over a tenth of the points, narrower at the ends. Fewer than 20 points stay as they are."""
    reach = len(points) // 20
    mean = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        window = points[index - near : index + near + 1]
        mean.append((x, math.fsum(y for _, y in window) / len(window)))
    return mean


# -- marks ------------------------------------------------------------------------------------


def _svg(name: str, title: str, about: str, height: float, body: Sequence[str], kind: str = "plot") -> str:
    ids = f"{_plain(name)}-title", f"{_plain(name)}-about"
    head = f'<title id="{ids[0]}">{_plain(title)}</title><desc id="{ids[1]}">{_plain(about)}</desc>'
    frame = f'class="{kind}" width="100%" height="{height:.0f}" role="img" aria-labelledby="{" ".join(ids)}"'
    return f"<svg {frame}>{head}{''.join(body)}</svg>"


def _plain(text: str) -> str:
    return escape(text, quote=True)


def _pc(share: float) -> str:
    return f"{100 * share:.3f}%".replace(".000%", "%")


def _down(value: float, low: float, high: float, height: float) -> float:
    span = (high - low) or 1
    return 4 + (height - 4) * (1 - (value - low) / span)


def _anchor(share: float) -> str:
    return "start" if share <= 0.02 else "end" if share >= 0.98 else "middle"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{_pc(x)}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{_plain(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str, title: str = "", round_: int = 3) -> str:
    hover = f"<title>{_plain(title)}</title>" if title else ""
    place = f'x="{_pc(x)}" y="{y:.1f}" width="{_pc(max(width, 0))}" height="{height:.1f}" rx="{round_}"'
    return f'<rect {place} fill="{colour}">{hover}</rect>'


def _column(x: float, y: float, width: float, height: float, colour: str, title: str, kind: str) -> str:
    place = f'x="{_pc(x)}" y="{y:.1f}" width="{_pc(width)}" height="{height:.1f}"'
    return f'<rect {place} fill="{colour}" class="column {kind}"><title>{_plain(title)}</title></rect>'


def _dot(x: float, y: float, radius: float, colour: str, title: str) -> str:
    place = f'cx="{_pc(x)}" cy="{y:.1f}" r="{radius}"'
    return f'<circle {place} fill="{colour}" class="dot"><title>{_plain(title)}</title></circle>'


def _diamond(x: float, y: float, title: str) -> str:
    """A diamond in a nested viewport, because a path cannot be positioned by percentages."""
    path = '<path d="M0-5.5 5.5 0 0 5.5-5.5 0z" class="diamond">'
    return f'<svg x="{_pc(x)}" y="{y:.1f}" class="open">{path}<title>{_plain(title)}</title></path></svg>'


def _whisker(interval: Interval, y: float, cap: float) -> str:
    low, high = (_pc(x) for x in interval)
    ends = f'y1="{y - cap:.1f}" y2="{y + cap:.1f}"'
    lines = f'<line x1="{low}" x2="{high}" y1="{y:.1f}" y2="{y:.1f}"/>'
    lines += "".join(f'<line x1="{x}" x2="{x}" {ends}/>' for x in (low, high))
    return f'<g class="whisker">{lines}</g>'


def _vertical(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line x1="{_pc(x)}" x2="{_pc(x)}" y1="{top:.1f}" y2="{bottom:.1f}" class="{kind}"/>'


def _horizontal(y: float, text: str) -> str:
    line = f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
    return line + f'<text x="-8" y="{y + 4:.1f}" class="tick" text-anchor="end">{_plain(text)}</text>'


def _polyline(points: Sequence[Point], colour: str, height: int, kind: str) -> str:
    """``points`` are (share of the width, pixels from the top). Stretched horizontally, with an even stroke."""
    places = " ".join(f"{1000 * x:.1f},{y:.1f}" for x, y in points)
    frame = f'width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none" class="open"'
    return f'<svg {frame}><polyline points="{places}" stroke="{colour}" class="{kind}"/></svg>'
