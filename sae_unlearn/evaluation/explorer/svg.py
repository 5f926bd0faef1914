"""Drawings as inline SVG: a frame with axes, and marks in it. Style sheet classes give colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 48


def tag(name: str, content: object = "", /, **attributes: object) -> Markup:
    """Return an element. Attributes and content that is not `Markup` are escaped.

    `class_` becomes `class`, and `_` becomes `-`.
    """
    shown = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), shown, content)


def joined(parts: Sequence[Markup]) -> Markup:
    """Return elements one after the other."""
    return Markup("\n").join(parts)


@dataclass(frozen=True)
class Frame:
    """Region of the plot, in data coordinates `[x_low, x_high]` and `[y_low, y_high]`."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Return the horizontal place, from the left."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the vertical place, from the top."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def axes(self, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_label: str) -> Markup:
        """Return grid lines with numbers, and the label of the horizontal axis."""
        parts = [
            tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(value), y2=self.y(value))
            for value, _ in y_ticks
        ]
        parts += [
            tag("text", label, class_="tick", x=LEFT - 7, y=self.y(value) + 4, text_anchor="end")
            for value, label in y_ticks
        ]
        parts += [
            tag("text", label, class_="tick", x=self.x(value), y=HEIGHT - BOTTOM + 18, text_anchor="middle")
            for value, label in x_ticks
        ]
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(tag("text", x_label, class_="label", x=middle, y=HEIGHT - 8, text_anchor="middle"))
        return joined(parts)

    def rule(self, y: float) -> Markup:
        """Return a horizontal line."""
        return tag("line", class_="rule", x1=LEFT, x2=WIDTH - RIGHT, y1=self.y(y), y2=self.y(y))

    def mark(self, x: float, label: str) -> Markup:
        """Return a dashed vertical line with a label above it."""
        place = self.x(x)
        right = place + 7 * len(label) < WIDTH  # a letter is about 7 units wide
        text = tag("text", label, class_="note", x=place, y=TOP - 10, text_anchor="start" if right else "end")
        return tag("line", class_="mark", x1=place, x2=place, y1=TOP - 4, y2=HEIGHT - BOTTOM) + text

    def box(self, x: tuple[float, float], y: tuple[float, float], class_: str, title: str = "") -> Markup:
        """Return a rectangle between two values in each direction. `title` is its tooltip."""
        (left, right), (low, high) = (sorted(map(self.x, x)), sorted(map(self.y, y)))
        size = {"width": round(right - left, 1), "height": round(high - low, 1)}
        return tag("rect", tag("title", title) if title else "", class_=class_, x=left, y=low, **size)

    def line(self, points: Sequence[tuple[float, float]], class_: str) -> Markup:
        """Return a line through points."""
        return tag("polyline", class_=f"line {class_}", points=" ".join(f"{self.x(x)},{self.y(y)}" for x, y in points))

    def band(self, points: Sequence[tuple[float, float, float]], class_: str) -> Markup:
        """Return the region between `low` and `high` of points `(x, low, high)`."""
        there, back = [(x, high) for x, _, high in points], [(x, low) for x, low, _ in reversed(points)]
        corners = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in (*there, *back))
        return tag("polygon", class_=f"band {class_}", points=corners)

    def dot(self, x: float, y: float, class_: str, title: str) -> Markup:
        """Return a point. `title` is its tooltip."""
        return tag("circle", tag("title", title), class_=f"dot {class_}", cx=self.x(x), cy=self.y(y), r=4)

    def whisker(self, x: float, low: float, high: float, class_: str) -> Markup:
        """Return an interval."""
        return tag("line", class_=f"whisker {class_}", x1=self.x(x), x2=self.x(x), y1=self.y(low), y2=self.y(high))


def drawing(parts: Sequence[Markup], description: str) -> Markup:
    """Return the whole drawing, with a description for screen readers."""
    return tag("svg", joined(parts), viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description)


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about five round numbers from `low` to `high`, with their labels."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(span / size - 5))
    first = math.ceil(low / step - 1e-9)
    values = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if step / power == 2.5 else 0)
    return [(value, f"{value + 0.0:.{digits}f}") for value in values]
