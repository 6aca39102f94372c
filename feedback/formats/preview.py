"""A look at a file before it is imported: its format, ten rows as they would be kept, and what would be left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feedback.annotations import Annotation, Record
from feedback.formats import files
from feedback.formats.base import Format
from feedback.formats.load import Watch
from feedback.formats.record import as_turns
from feedback.formats.storable import Storing, row_or_reason

SHOWN = 10
LONGEST = 300  # characters of a text that is shown
CHOSEN = {"left": "{} is better than {}", "right": "{} is worse than {}"}


@dataclass(frozen=True)
class Preview:
    """What an import of a file would keep; `rows` are the first of them."""

    format: str
    kept: int
    left_out: dict[str, int]
    rows: tuple[Record, ...]


def look(path: Path, form: Format, watch: Watch = lambda rows, _: rows, keep_personal: bool = False) -> Preview:
    """Read a whole file and keep nothing of it. Raises `Refused` on one that cannot be read."""
    storing = Storing(None if keep_personal else lambda _: "address")
    left_out: Counter[str] = Counter()
    rows: list[Record] = []
    kept = 0
    for raw in watch(files.read(path), "reading"):
        row = row_or_reason(raw, form, storing)
        if isinstance(row, str):
            left_out[row] += 1
            continue
        kept += 1
        if len(rows) < SHOWN:
            rows.append(row)
    return Preview(form.name, kept, dict(sorted(left_out.items())), tuple(rows))


def as_facts(found: Preview) -> dict[str, Any]:
    """A preview as JSON has it, every text whole."""
    rows = [
        {
            "messages": as_turns(row.messages),
            "replies": [asdict(each) for each in row.replies],
            "said": [_given(each) for each in row.said],
            "extra": row.extra,
        }
        for row in found.rows
    ]
    return {"format": found.format, "kept": found.kept, "left_out": found.left_out, "rows": rows}


def as_lines(found: Preview) -> Iterator[str]:
    """A preview for a terminal, long texts cut."""
    for number, row in enumerate(found.rows, 1):
        yield f"row {number}"
        yield from (f"  {turn.role}: {_short(turn.content)}" for turn in row.messages)
        for at, reply in enumerate(row.replies, 1):
            by = f" ({reply.model})" if reply.model else ""
            yield f"  reply {at}{by}: {_short(reply.text)}"
        yield from (f"  -> {_in_words(said)}" for said in row.said)
        if row.extra:
            yield f"  besides: {', '.join(row.extra)}"


def _given(said: Annotation) -> dict[str, Any]:
    """What an annotation says, without the fields that say nothing."""
    empty = vars(Annotation(said.kind, said.of))
    return {name: each for name, each in vars(said).items() if name in ("kind", "of") or each != empty[name]}


def _in_words(said: Annotation) -> str:
    """An annotation in one line; replies are counted from 1."""
    of = [f"reply {each + 1}" for each in said.of]
    told = ", ".join(of)
    if said.kind == "comparison":
        told = CHOSEN.get(said.choice, f"{{}} and {{}}: {said.choice.replace('_', ' ')}").format(*of)
    elif said.kind == "ranking":
        told = ", ".join(f"{reply}: place {rank}" for reply, rank in zip(of, said.ranks, strict=True))
    elif said.kind == "thumb":
        told = f"thumb {'up' if said.value == 1 else 'down'} for {told}"
    else:
        told = f"{said.kind} of {told}: {said.label or _short(said.text)}"
    words = f', "{_short(said.words)}"' if said.words else ""
    return f"{told}{f', by {said.rater}' if said.rater else ''}{words}"


def _short(text: str) -> str:
    """A text in one line, cut if it is long, without what a terminal would obey."""
    line = "".join(each if each.isprintable() else " " for each in " ".join(text.split())[: LONGEST + 1])
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
