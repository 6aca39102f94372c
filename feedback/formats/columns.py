"""A mapping of a file's own columns, declared by whoever imports it, for files in no format known here."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from feedback.errors import Refused
from feedback.formats.base import Format, Row
from feedback.formats.record import CHOSEN_FIRST, MODEL_ANSWER, Annotation, Dropped, Record, rest
from feedback.formats.turns.sides import completed, pair
from feedback.formats.turns.verdicts import verdict
from feedback.numerals import natural

NAME = "columns"
# What a column may be declared as, and the names that such columns often have.
USUAL = {
    "prompt": "prompt question instruction input query user user_input context post history ask asked",
    "messages": "messages conversations conversation chat dialog dialogue turns",
    "chosen": "chosen best better preferred accepted good winner win positive response_chosen chosen_response "
    "preferred_output",
    "rejected": "rejected worst worse dispreferred bad loser lose negative response_rejected rejected_response "
    "non_preferred_output",
    "completion": "completion response answer output reply generation model_output text",
    "label": "label thumb thumbs rating feedback vote verdict liked is_good kto_tag",
    "system": "system system_prompt system_message",
    "rater": "rater user_id annotator annotator_id worker_id reviewer judge",
    "comment": "comment comments explanation reason rationale note",
}
SETS = (  # the columns that say something together, as they are asked for
    ("prompt", "chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("messages", "label"),
    ("prompt", "completion"),
    ("messages",),
)


def declared(said: str) -> dict[str, str]:
    """A mapping such as "prompt=question,chosen=best,rejected=worst". Raises `Refused` on what says nothing."""
    found: dict[str, str] = {}
    for each in said.split(","):
        name, equals, column = (part.strip() for part in each.partition("="))
        if not equals or not column or name not in USUAL:
            raise Refused(
                f"--columns is NAME=COLUMN,...; a NAME is one of {', '.join(USUAL)}, not {each.strip()[:60]!r}"
            )
        if name in found:
            raise Refused(f"--columns names {name} twice")
        found[name] = column
    sides = found.keys() & {"chosen", "rejected"}
    if len(sides) == 1 or (not sides and found.keys().isdisjoint({"completion", "messages"})):
        raise Refused("--columns needs chosen and rejected, or completion, or messages: they say something of a reply")
    if sides and not found.keys().isdisjoint({"completion", "label"}):
        raise Refused("--columns takes chosen and rejected, or completion and label, not both")
    return found


def format_of_columns(columns: Mapping[str, str]) -> Format:
    """A format for import that reads a file by its declared columns."""
    reader = _pair if "chosen" in columns else _reply

    def read(raw: dict[str, Any]) -> Record:
        values = {name: _value(raw, column) for name, column in columns.items()}
        row = reader(values)
        rater, words = _word(values.get("rater")), _word(values.get("comment"))
        told = tuple(replace(each, rater=rater, words=words) for each in row.said)
        system = {"system": values["system"]} if "system" in values else {}
        return replace(row, said=told, extra=rest(raw, *columns.values()) | system)

    return Format(NAME, "the columns that were declared", (Row(" ".join(columns.values())),), read)


def require_columns(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Raises `Refused` if none of some rows has one of the declared columns."""
    missing = dict(columns)
    there: dict[str, None] = {}
    for row in rows:
        there.update(dict.fromkeys(row))
        missing = {name: column for name, column in missing.items() if _value(row, column) is None}
    for name, column in missing.items():
        raise Refused(f"no row has {column!r}, declared as {name}; the columns are {', '.join(there)[:300]}")


def _value(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field inside of one: data.answer. None if there is none."""
    if column in raw:
        return raw[column]
    value: Any = raw
    for part in column.split("."):
        number = natural(part)
        if isinstance(value, list) and number is not None:
            value = value[number] if number < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _word(value: Any) -> str:
    return "" if value is None or value != value else str(value)  # NaN is what a table has for nothing


def _asked(values: Mapping[str, Any]) -> Any:
    return values["prompt"] if values.get("prompt") is not None else values.get("messages")


def _pair(values: Mapping[str, Any]) -> Record:
    told, replies = pair(_asked(values), values["chosen"], values["rejected"])
    return Record(told, replies, CHOSEN_FIRST)


def _reply(values: Mapping[str, Any]) -> Record:
    if "completion" in values:
        told, reply = completed(_asked(values), values["completion"])
    else:
        told, reply = completed(None, values["messages"])
    if "label" not in values:
        return Record(told, (reply,), MODEL_ANSWER)
    good = verdict(values["label"])
    if good is None:
        raise Dropped("a label that is neither true nor false")
    return Record(told, (reply,), (Annotation("thumb", (0,), value=1 if good else -1),))


def example(raw: Mapping[str, Any]) -> tuple[str, str]:
    """Columns as they might be declared for rows like this one, and a column that must be the better reply for that.

    They go by their names, else by which have the longest texts; the second is empty if a name says which is better.
    """
    told, better = next((found for names in SETS if len(found := _by_name(raw, names)) == len(names)), None), ""
    if told is None:
        names = SETS[0] if len(raw) > 2 else SETS[3] if len(raw) == 2 else SETS[4]
        told = _by_name(raw, names)
        wanted = [name for name in names if name not in told]
        others = sorted((each for each in raw if each not in told.values()), key=lambda each: -_length(raw[each]))
        taken = others[: len(wanted)]
        told |= dict(zip(wanted, (each for each in raw if each in taken), strict=False))
        better = told["chosen"] if "chosen" in wanted and "rejected" in wanted else ""
    told |= {name: column for name, column in _by_name(raw, ("system", "rater")).items() if column not in told.values()}
    return ",".join(f"{name}={told[name]}" for name in USUAL if name in told), better


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list) else 0


def _by_name(raw: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    plain = {str(name).strip().lower(): str(name) for name in raw}
    found = {name: next((plain[each] for each in USUAL[name].split() if each in plain), None) for name in names}
    return {name: column for name, column in found.items() if column}
