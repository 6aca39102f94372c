"""Draw the packages' rooms (folders) from their imports: `python scripts/architecture.py` writes docs/architecture.svg.

It fails on a folder of more than 12 modules, a file of more than 400 lines, and modules or rooms that import each other
in a circle. With `--check` nothing is written, and it also fails if the picture is out of date. Imports inside
functions and for type checking count as well.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"
PACKAGES = ("ui", "training", "assistant", "feedback")  # from top to bottom of the picture
MOST_MODULES, MOST_LINES = 12, 400
BOX, GAP, ROW, LEFT = 118, 14, 46, 96  # pixels


def sources() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """The names of the modules that a file imports, anywhere in it."""
    for each in ast.walk(ast.parse(path.read_text())):
        if isinstance(each, ast.ImportFrom) and each.module and not each.level:
            for alias in each.names:
                inner = f"{each.module}.{alias.name}"
                yield inner if inner in modules else each.module
        elif isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)


def import_graph(modules: Mapping[str, Path]) -> nx.DiGraph:
    """An edge from each module to those it imports."""
    graph = nx.DiGraph()
    graph.add_nodes_from(modules)
    for name, path in modules.items():
        graph.add_edges_from((name, each) for each in imported(path, modules) if each in modules and each != name)
    return graph


def room_of(module: str) -> str:
    """The folder that a module is in; a module directly inside a package is a room of its own."""
    return ".".join(module.split(".")[:2])


def room_graph(graph: nx.DiGraph, modules: Mapping[str, Path]) -> nx.DiGraph:
    """An edge from each room to those it imports from."""
    rooms = nx.DiGraph()
    for name in modules:
        if "." in name:
            rooms.add_node(room_of(name))
    for a, b in graph.edges:
        ours, theirs = room_of(a), room_of(b)
        if ours != theirs and "." in ours and "." in theirs:
            rooms.add_edge(ours, theirs)
    return rooms


def faults(graph: nx.DiGraph, rooms: nx.DiGraph, modules: Mapping[str, Path]) -> Iterator[str]:
    """Everything that breaks the rules, one sentence each."""
    for folder in sorted({path.parent for path in modules.values()}):
        count = sum(1 for each in folder.glob("*.py") if each.name not in ("__init__.py", "__main__.py"))
        if count > MOST_MODULES:
            yield f"{folder.relative_to(ROOT)} has {count} modules; {MOST_MODULES} are enough"
    for name, path in modules.items():
        lines = len(path.read_text().splitlines())
        if lines > MOST_LINES:
            yield f"{name} has {lines} lines; {MOST_LINES} are enough"
    for what, each in (("modules", graph), ("rooms", rooms)):
        for circle in nx.strongly_connected_components(each):
            if len(circle) > 1:
                yield f"{what} import each other in a circle: {', '.join(sorted(circle))}"


def picture(rooms: nx.DiGraph) -> str:
    """The rooms of each package as SVG: a room is above those it imports; arrows that others imply are left out.

    Arrows between packages go one way only (import-linter enforces that), so they are not drawn.
    """
    parts: list[str] = []
    top, width = 20, 0
    for package in PACKAGES:
        inside = rooms.subgraph(each for each in rooms if each.startswith(f"{package}."))
        levels = list(nx.topological_generations(inside.reverse()))[::-1]  # each as low as what it imports allows
        places = {}
        for row, level in enumerate(levels):
            for column, room in enumerate(sorted(level)):
                places[room] = (LEFT + column * (BOX + GAP), top + row * ROW)
        width = max(width, *(x + BOX + GAP for x, _ in places.values()))
        height = len(levels) * ROW
        parts.append(f'<text x="12" y="{top + 19}" class="package">{package}/</text>')
        parts += [_arrow(places[a], places[b]) for a, b in sorted(nx.transitive_reduction(inside).edges)]
        parts += [_box(room.split(".", 1)[1], *places[room]) for room in sorted(places)]
        top += height + 20
        parts.append(f'<line x1="12" y1="{top - 18}" x2="{{width}}" y2="{top - 18}" class="floor"/>')
    style = (
        "text{font:13px system-ui,sans-serif;fill:#1e293b}.package{font-weight:600}"
        "rect{fill:#eef2ff;stroke:#6366f1}path{fill:none;stroke:#94a3b8}.floor{stroke:#cbd5e1}"
    )
    body = "\n".join(parts).replace("{width}", str(width))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top - 10}" width="{width}">\n'
        f'<style>{style}</style>\n<rect width="{width}" height="{top - 10}" style="fill:#fff;stroke:none"/>\n'
        f"{body}\n</svg>\n"
    )


def _box(words: str, x: int, y: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{BOX}" height="28" rx="6"/>'
        f'<text x="{x + BOX / 2}" y="{y + 19}" text-anchor="middle">{escape(words)}</text>'
    )


def _arrow(above: tuple[int, int], below: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = ((x + BOX // 2, y) for x, y in (above, below))
    return f'<path d="M{x1} {y1 + 28}C{x1} {y1 + 44} {x2} {y2 - 16} {x2} {y2}"/>'


def main(arguments: list[str]) -> int:
    """Draw or check; return 1 if something is wrong."""
    modules = sources()
    graph = import_graph(modules)
    rooms = room_graph(graph, modules)
    found = list(faults(graph, rooms, modules))
    for each in found:
        print(each, file=sys.stderr)
    if any(not nx.is_directed_acyclic_graph(each) for each in (rooms,)):
        return 1
    drawn = picture(rooms)
    if "--check" not in arguments:
        PICTURE.write_text(drawn)
    elif not PICTURE.is_file() or PICTURE.read_text() != drawn:
        found.append("stale")
        print(f"{PICTURE.relative_to(ROOT)} is out of date: python scripts/architecture.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
