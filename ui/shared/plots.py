"""Plots as HTML that fits any width and both themes: the marks stretch, the numbers beside them do not.

Curves are SVG without text, bars are boxes; colours are CSS variables of the page.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 1000, 300  # the view box of a curve
NOISY_FROM = 40  # points; a line of fewer is not smoothed
Points = Sequence[tuple[float, float]]  # (step, value), by step


def number(value: float) -> str:
    """A value with the digits that matter: 0.693, 12.3, 1,240."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.0e}"


def curve(
    title: str, hint: str, lines: Mapping[str, Points], steps: int, axis: Sequence[float] = (), noisy: bool = True
) -> str:
    """A small plot over steps 1 to `steps`: one line per name, the newest value of each in the title.

    The vertical axis always includes the values of `axis`. If `noisy`, the first line is drawn with its running mean,
    from `NOISY_FROM` points on.
    """
    drawn = {name: [each for each in points if math.isfinite(each[1])] for name, points in lines.items()}
    values = [value for points in drawn.values() for _, value in points]
    low, high = min([*values, *axis], default=0.0), max([*values, *axis], default=1.0)
    if high - low < 1e-9:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    parts = [
        _line(f"line line-{place}", points, steps, low, high, noisy and not place and len(points) >= NOISY_FROM)
        for place, points in enumerate(drawn.values())
    ]
    newest = [f"{name} {number(points[-1][1])}".strip() for name, points in drawn.items() if points]
    zero = f'<line class="zero" x1="0" x2="{WIDTH}" y1="{_y(0, low, high)}" y2="{_y(0, low, high)}"/>'
    return (
        f'<figure class="curve" role="img" aria-label="{escape(title)}: {escape(", ".join(newest) or "no value yet")}">'
        f'<figcaption><span class="name">{escape(title)}</span> <span class="hint">{escape(hint)}</span>'
        f'<span class="newest">{escape(" · ".join(newest) or "–")}</span></figcaption>'
        f'<div class="area"><div class="ticks"><span>{number(high)}</span><span>{number(low)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f"{zero if low < 0 < high else ''}{''.join(parts)}</svg></div>"
        f'<div class="steps"><span>step 1</span><span>{max(steps, 1)}</span></div></figure>'
    )


def _line(kind: str, points: Points, steps: int, low: float, high: float, noisy: bool) -> str:
    """A line as SVG: a noisy one faint, with its running mean over it; a lone point as a short dash."""
    if len(points) == 1:
        points = [points[0], (points[0][0] + max(steps, 1) / 100, points[0][1])]
    if not noisy:
        return _path(kind, points, steps, low, high)
    return _path("line faint", points, steps, low, high) + _path(kind, smooth(points), steps, low, high)


def smooth(points: Points) -> Points:
    """The centred running mean of a line, over about a tenth of its points."""
    reach, smoothed = max(2, len(points) // 20), []
    for place, (step, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        smoothed.append((step, sum(value for _, value in near) / len(near)))
    return smoothed


def _path(kind: str, points: Points, steps: int, low: float, high: float) -> str:
    places = " ".join(f"{_x(step, steps)},{_y(value, low, high)}" for step, value in points)
    return f'<polyline class="{kind}" points="{places}"/>' if points else ""


def _x(step: float, steps: int) -> float:
    return round((step - 1) / max(1, steps - 1) * WIDTH, 1)


def _y(value: float, low: float, high: float) -> float:
    return round((1 - (value - low) / (high - low)) * (HEIGHT - 16) + 8, 1)


def bars(days: Sequence[tuple[str, str, Mapping[str, int]]], kinds: Mapping[str, str]) -> str:
    """One stacked bar per day of (short label, long label, count by kind); `kinds` has the kinds' labels, in order."""
    totals = [sum(counts.values()) for _, _, counts in days]
    top = nice_top(max(totals, default=0))
    columns = []
    for (short, long, counts), total in zip(days, totals, strict=True):
        said = ", ".join(f"{counts[kind]} {words}" for kind, words in kinds.items() if counts.get(kind))
        boxes = "".join(
            f'<i class="{kind}" style="height:{100 * counts[kind] / top:.2f}%"></i>'
            for kind in kinds
            if counts.get(kind)
        )
        columns.append(
            f'<div class="day" title="{escape(long)}: {escape(said or "nothing")}"><div class="stack">{boxes}</div>'
            f'<span class="label">{escape(short)}</span><span class="sr">{total}</span></div>'
        )
    sums = {kind: sum(counts.get(kind, 0) for _, _, counts in days) for kind in kinds}
    legend = "".join(
        f'<li class="{"" if sums[kind] else "none"}"><i class="{kind}"></i>{sums[kind]} {escape(words)}</li>'
        for kind, words in kinds.items()
    )
    return (
        f'<div class="bars"><div class="ticks"><span>{top}</span><span>{top // 2 or ""}</span><span>0</span></div>'
        f'<div class="days">{"".join(columns)}</div></div><ul class="legend">{legend}</ul>'
    )


def nice_top(most: int) -> int:
    """The upper end of an axis for counts up to `most`: even, so that its middle is a whole number."""
    if most <= 4:
        return 4
    unit = 10 ** math.floor(math.log10(most))
    ends = (round(unit * each) for each in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10))
    return next(end for end in ends if end >= most and end % 2 == 0)


def interval(low: float, rate: float, high: float) -> str:
    """A rate with its interval, on a line from 0 to 100 % with a mark at one half, as HTML."""
    return (
        '<span class="interval" aria-hidden="true"><i class="half"></i>'
        f'<i class="whisker" style="left:{100 * low:.1f}%;width:{100 * max(0.0, high - low):.1f}%"></i>'
        f'<i class="dot" style="left:{100 * rate:.1f}%"></i></span>'
    )
