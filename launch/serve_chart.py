#!/usr/bin/env python3
"""A picture of what `sala-bench --serve --json FILE` measured: time to first token, and decode
speed, of the hybrid beside its full-attention source. Standard library alone.

usage: launch/serve_chart.py FILE.json... OUT.svg

Rows of several files are put together; of equal rows the last one counts. A row without a number
is drawn where its note says that it does not fit, as a cross at the upper edge.
"""
import json
import math
import sys
from html import escape

COLORS = {"full": "#c2571a", "hybrid": "#1a6fb0"}
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 420, 300, 56, 40, 24, 44
INK, FAINT, PAPER = "#333333", "#d9d9d9", "#ffffff"


def rows_of(files):
    rows = {}
    for file in files:
        with open(file, encoding="utf-8") as text:
            for row in json.load(text)["rows"]:
                rows[row["model"], row["batch"], row["tokens"]] = row
    return list(rows.values())


def decades(low, high):
    """Ticks 1, 2, 5, 10, ... that lie in the range."""
    ticks = [m * 10.0 ** e for e in range(-4, 9) for m in (1, 2, 5)]
    return [t for t in ticks if low <= t <= high * 1.0001]


class Panel:
    """Lines over tokens, both axes logarithmic."""

    def __init__(self, title, rows, value, left):
        self.title, self.value, self.left = title, value, left
        self.rows = sorted(rows, key=lambda r: r["tokens"])
        values = [r[value] for r in rows if r.get(value)]
        tokens = [r["tokens"] for r in rows]
        self.x_range = min(tokens), max(max(tokens), 2 * min(tokens))
        self.y_range = min(values) / 1.5, max(values) * 1.5

    def x(self, tokens):
        low, high = map(math.log, self.x_range)
        share = (math.log(tokens) - low) / (high - low)
        return self.left + LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        low, high = map(math.log, self.y_range)
        return TOP + (1 - (math.log(value) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)

    def frame(self):
        right, bottom = self.left + WIDTH - RIGHT, HEIGHT - BOTTOM
        yield text(self.left + LEFT, 20, self.title, "start", 14)
        for tick in decades(*self.y_range):
            y = self.y(tick)
            yield f'<path d="M{self.left + LEFT} {y:.1f}H{right}" stroke="{FAINT}"/>'
            yield text(self.left + LEFT - 6, y + 4, f"{tick:g}", "end")
        for tokens in sorted({r["tokens"] for r in self.rows}):
            yield text(self.x(tokens), bottom + 18, length_text(tokens), "middle")
        yield text((self.left + LEFT + right) / 2, bottom + 36, "tokens", "middle")

    def lines(self):
        for model, color in COLORS.items():
            rows = [r for r in self.rows if r["model"] == model]
            points = [(self.x(r["tokens"]), self.y(r[self.value])) for r in rows if r.get(self.value)]
            if points:
                path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
                yield f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>'
                yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>'
                            for x, y in points)
                falls = points[-1][1] > points[0][1] + 40
                beside = points[-1][0] - (14 if falls else 6), points[-1][1] + (12 if falls else -9)
                yield text(*beside, model, "end", 12, color)
            for r in rows:
                if "does not fit" in r.get("note", ""):
                    x, y = self.x(r["tokens"]), TOP + 6
                    yield (f'<path d="M{x - 4:.1f} {y - 4}l8 8m0 -8l-8 8" stroke="{color}" '
                           f'stroke-width="2"><title>{escape(r["note"])}</title></path>')

    def svg(self):
        return [*self.frame(), *self.lines()]


def text(x, y, words, anchor, size=12, color=INK):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{color}">{escape(words)}</text>')


def length_text(tokens):
    return f"{tokens >> 20}M" if tokens % (1 << 20) == 0 else f"{tokens >> 10}K"


def main():
    if len(sys.argv) < 3 or not sys.argv[-1].endswith(".svg"):
        sys.exit(__doc__)
    rows = rows_of(sys.argv[1:-1])
    largest = max(r["batch"] for r in rows)
    panels = [("first token, seconds", 1, "first_token_s")]
    panels += [(f"tokens/s of {b} sequence{'s' * (b > 1)}", b, "decode_tokens_per_s")
               for b in sorted({1, largest})]
    parts = []
    for title, batch, value in panels:
        of_batch = [r for r in rows if r["batch"] == batch]
        if any(r.get(value) for r in of_batch):
            parts.append((title, of_batch, value))
    width = WIDTH * len(parts)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
             f'width="{width}" font-family="sans-serif">',
             f'<rect width="{width}" height="{HEIGHT}" fill="{PAPER}"/>']
    for i, part in enumerate(parts):
        lines += Panel(*part, i * WIDTH).svg()
    with open(sys.argv[-1], "w", encoding="utf-8") as out:
        out.write("\n".join(lines + ["</svg>"]) + "\n")
    print(f"{sys.argv[-1]}: {len(rows)} rows; a cross: does not fit")


if __name__ == "__main__":
    main()
