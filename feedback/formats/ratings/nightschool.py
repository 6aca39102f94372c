"""The ledger's own format, which holds every kind of feedback."""

from dataclasses import asdict
from typing import Any

from feedback.formats.base import EVERYTHING, Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, rest, turns_of

TEXTS = ("kind", "at", "choice", "text", "label", "words")


def read(raw: dict[str, Any]) -> Record:
    """Read a row that `write` wrote. Raises `Dropped` on any other."""
    try:
        said: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in raw["said"].items()
        }
        replies = tuple(Reply(each["text"], each["model"], str(each["id"])) for each in raw["replies"])
        one = Annotation(**said)
        if not one.of or max(one.of) >= len(replies):
            raise Dropped("it says something of a reply that is not there")
        if not all(isinstance(getattr(one, name), str) for name in TEXTS) or any(
            type(each) is not int for each in one.ranks
        ):
            raise Dropped("it is not what the ledger writes")
    except (TypeError, AttributeError, KeyError):
        raise Dropped("it is not what the ledger writes") from None
    extra = rest(raw, "message", "messages", "replies", "said")
    return Record(turns_of(raw["messages"]), replies, (one,), extra, str(raw["message"]))


def write(row: Record, number: int) -> dict[str, Any]:
    """Write one annotation in full: who, when, about which replies, and all its fields."""
    (said,) = row.said
    empty = vars(Annotation(said.kind, said.of))
    kept = {name: each for name, each in vars(said).items() if name in ("kind", "of") or each != empty[name]}
    replies = [asdict(each) for each in row.replies]
    return {"message": row.message, "messages": as_turns(row.messages), "replies": replies, "said": kept}


FORMAT = Format("nightschool", "all that was said", (Row("messages replies said"),), read, write, EVERYTHING)
