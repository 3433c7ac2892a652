"""Draws results as SVG: the ratio to the kernel's overlayfs on a logarithmic scale, a row for each workload."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from benchmark.report import ratio, subject_of
from benchmark.runner import Results
from benchmark.workload import KERNEL

_ROW, _LEFT, _WIDTH, _TOP, _RIGHT = 18, 150, 560, 52, 24
_COLOURS = ("#d3410a", "#3b7dd8", "#8a8a8a", "#1b9e77", "#a6417a", "#8a6d00")  # the first is the subject's
_TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class _Scale:
    """From a ratio to a place, with a tick at both ends."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min([*values, 0.5]), max([*values, 2.0])
        first = max((tick for tick in _TICKS if tick <= low), default=low)
        last = min((tick for tick in _TICKS if tick >= high), default=high)
        self.ticks = [tick for tick in _TICKS if first <= tick <= last]
        self._first, self._span = math.log(first), math.log(last) - math.log(first)

    def x(self, value: float) -> float:
        return _LEFT + _WIDTH * (math.log(value) - self._first) / self._span


def _text(x: float, y: float, words: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


def _dot(x: float, y: float, colour: str, title: str) -> str:
    # The subject's dot is the largest and lies on top of the others.
    radius = 5.5 if colour == _COLOURS[0] else 4
    shape = f'cx="{x:.1f}" cy="{y:.0f}" r="{radius}" fill="{colour}" fill-opacity="0.85"'
    return f"<circle {shape}><title>{escape(title)}</title></circle>"


def _legend(systems: Sequence[str]) -> Iterator[str]:
    yield _text(8, 18, "time, as a multiple of the kernel's overlayfs (logarithmic)", more=' font-weight="bold"')
    x = float(_LEFT)
    for name, colour in zip(systems, _COLOURS, strict=False):
        yield _dot(x, 34, colour, name)
        yield _text(x + 9, 38, name)
        x += 36 + 7 * len(name)


def _grid(scale: _Scale, bottom: int) -> Iterator[str]:
    for tick in scale.ticks:
        x, style = scale.x(tick), 'stroke="#333" stroke-width="1.5"' if tick == 1 else 'stroke="#ddd"'
        yield f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{bottom}" {style}/>'
        yield _text(x, bottom + 14, f"{tick:g}", "middle")


def draw(path: Path, results: Results, systems: Sequence[str]) -> None:
    """Write the chart; of all systems but the kernel, which is the line at 1."""
    subject = subject_of(systems)
    shown = [subject, *(name for name in systems if name not in (subject, KERNEL))][: len(_COLOURS)]
    rows = {
        workload: {name: value for name in shown if (value := ratio(outcomes, name, KERNEL)) is not None}
        for workload, outcomes in results.items()
    }
    scale = _Scale([value for row in rows.values() for value in row.values()])
    bottom = _TOP + _ROW * len(rows)
    parts = [*_legend(shown), *_grid(scale, bottom)]
    for number, (workload, row) in enumerate(rows.items()):
        y = _TOP + _ROW * number + _ROW // 2
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}" stroke="#f0f0f0"/>')
        parts.append(_text(_LEFT - 10, y + 4, workload, "end"))
        for name, value in reversed(row.items()):
            parts.append(_dot(scale.x(value), y, _COLOURS[shown.index(name)], f"{workload}, {name}: {value:.2f}"))
    width, height = _LEFT + _WIDTH + _RIGHT, bottom + 22
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    background = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    path.write_text("\n".join([f"{head} {style}>", background, *parts, "</svg>"]) + "\n")
