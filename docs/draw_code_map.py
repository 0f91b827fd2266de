"""``python docs/draw_code_map.py``: draw which part of the code imports which, as docs/code-map.svg.

Boxes are the packages and modules two levels deep (``pipelines.storage``), arrows the imports between them, lazy ones
included; all of it is read from the syntax, and nothing is imported. An arrow that follows from others is faint.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "code-map.svg"

Edges = Mapping[str, frozenset[str]]
"""For each box those that it imports."""

# Each package in a band of its own; those side by side do not know each other.
_BANDS = (("flows",), ("actors",), ("pipelines", "xsam_model"))
_COLORS = {"flows": "#8250df", "actors": "#bc4c00", "pipelines": "#0969da", "xsam_model": "#1a7f37"}
_WIDTH, _ROW, _BOX, _GAP = 1500, 66, 30, 34
_LETTER = 7.2


@dataclass(frozen=True)
class Box:
    """A box of the picture: its upper left corner and its width, in pixels."""

    name: str
    x: float
    y: float
    width: float


def read_edges() -> Edges:
    """Read the imports of all modules; those that only keep an old address are left out."""
    edges: dict[str, set[str]] = {}
    for package in _COLORS:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            box = _box_of(module)
            if box is None or (module.count(".") == 1 and _is_old_address(tree)):
                continue
            found = {_box_of(name) for name in _imported(tree, module)}
            edges.setdefault(box, set()).update(name for name in found if name and name != box)
    return {box: frozenset(found & edges.keys()) for box, found in sorted(edges.items())}


def _box_of(module: str) -> str | None:
    """The first two parts of a module's address; None for a package itself and for what is not ours."""
    package, *rest = module.split(".")
    return f"{package}.{rest[0]}" if package in _COLORS and rest and rest[0] != "__init__" else None


def _is_old_address(tree: ast.Module) -> bool:
    """Whether a module defines nothing and only hands on what another one has."""
    defines = (ast.FunctionDef, ast.ClassDef, ast.AnnAssign)
    return not any(isinstance(node, defines) or _is_value(node) for node in tree.body)


def _is_value(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != "__all__"


def _imported(tree: ast.Module, module: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def implied(edges: Edges, start: str, end: str) -> bool:
    """Whether a box reaches another one by way of others, too."""
    seen, ahead = set(), [name for name in edges[start] if name != end]
    while ahead:
        name = ahead.pop()
        if name == end:
            return True
        if name not in seen:
            seen.add(name)
            ahead += edges[name]
    return False


def _heights(edges: Edges, package: str) -> dict[str, int]:
    """The longest way from each box of a package down to one that imports none of it."""
    heights: dict[str, int] = {}

    def height(box: str) -> int:
        if box not in heights:
            inside = [name for name in edges[box] if name.startswith(f"{package}.")]
            heights[box] = 1 + max(map(height, inside), default=-1)
        return heights[box]

    for box in edges:
        if box.startswith(f"{package}."):
            height(box)
    return heights


def place(edges: Edges) -> tuple[dict[str, Box], int]:
    """Place the boxes: what imports stands above what it imports. Also returns the picture's height."""
    boxes: dict[str, Box] = {}
    top = 40
    for band in _BANDS:
        rows_of = {package: _rows(edges, package) for package in band}
        sizes = {package: max(map(_row_width, rows)) for package, rows in rows_of.items()}
        spare = (_WIDTH - sum(sizes.values())) / (len(band) + 1)
        left = spare
        for package, rows in rows_of.items():
            for number, row in enumerate(rows):
                x = left + (sizes[package] - _row_width(row)) / 2
                for name in row:
                    boxes[name] = Box(name, x, top + number * _ROW, _box_width(name))
                    x += _box_width(name) + _GAP
            left += sizes[package] + spare
        top += max(map(len, rows_of.values())) * _ROW + 36
    return boxes, top


def _rows(edges: Edges, package: str) -> list[list[str]]:
    heights = _heights(edges, package)
    rows = defaultdict(list)
    for box, height in heights.items():
        rows[max(heights.values()) - height].append(box)
    return [sorted(rows[number]) for number in sorted(rows)]


def _box_width(name: str) -> float:
    return _LETTER * len(name.partition(".")[2]) + 18


def _row_width(row: list[str]) -> float:
    return sum(map(_box_width, row)) + _GAP * (len(row) - 1)


def draw(edges: Edges) -> str:
    """Return the picture as SVG."""
    boxes, height = place(edges)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        "<title>Which part of the code imports which</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for package, color in _COLORS.items():
        lines.append(
            f'<marker id="{package}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 8 4 0 8z" fill="{color}"/></marker>'
        )
        lines.append(_frame(package, [box for box in boxes.values() if box.name.startswith(f"{package}.")]))
    arrows = sorted((not implied(edges, box, end), box, end) for box, ends in edges.items() for end in ends)
    lines += [_arrow(boxes[box], boxes[end], is_strong=is_strong) for is_strong, box, end in arrows]
    lines += [_drawn(box) for box in boxes.values()]
    return "\n".join([*lines, "</svg>", ""])


def _frame(package: str, boxes: list[Box]) -> str:
    left, top = min(box.x for box in boxes) - 12, min(box.y for box in boxes) - 26
    right, bottom = max(box.x + box.width for box in boxes) + 12, max(box.y for box in boxes) + _BOX + 10
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" height="{bottom - top:.0f}" rx="8" '
        f'fill="{_COLORS[package]}" fill-opacity="0.06"/>'
        f'<text x="{left + 8:.0f}" y="{top + 16:.0f}" font-size="13" font-weight="bold" '
        f'fill="{_COLORS[package]}">{package}</text>'
    )


def _arrow(start: Box, end: Box, *, is_strong: bool) -> str:
    package = start.name.partition(".")[0]
    x1, y1, x2, y2 = start.x + start.width / 2, start.y + _BOX, end.x + end.width / 2, end.y - 1
    middle = (y2 - y1) / 2
    marker = f' marker-end="url(#{package})"' if is_strong else ""
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + middle:.0f} {x2:.0f} {y2 - middle:.0f} {x2:.0f} {y2:.0f}" '
        f'fill="none" stroke="{_COLORS[package]}" stroke-width="{1.3 if is_strong else 0.8}" '
        f'stroke-opacity="{0.75 if is_strong else 0.13}"{marker}/>'
    )


def _drawn(box: Box) -> str:
    package, _, name = box.name.partition(".")
    return (
        f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{_BOX}" rx="5" fill="#ffffff" '
        f'stroke="{_COLORS[package]}"/><text x="{box.x + box.width / 2:.0f}" y="{box.y + 19:.0f}" font-size="12" '
        f'text-anchor="middle" fill="#1f2328">{escape(name)}</text>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(read_edges()), encoding="utf-8")
