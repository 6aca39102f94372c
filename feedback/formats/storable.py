"""The form of a row that the ledger can hold: whole texts, values that JSON has, and no personal fields.

Readers yield whatever a file holds. A value that is not text where the ledger needs it drops its row, with a reason; in
the other fields of a row a value takes the form that JSON has for it, or is left out and counted.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from feedback.chats.conversations import LONGEST_MESSAGE
from feedback.formats.base import Format
from feedback.formats.files import Unread
from feedback.formats.record import Annotation, Dropped, Record, Reply
from feedback.kinds.base import named
from feedback.kinds.vote import REASONS
from feedback.messages import Message, mended

DEEPEST = 60  # levels of a field; SQLite's JSON allows 1,000, and other readers fewer
LARGEST = 2**63  # SQLite's and Arrow's integers have 64 bits
MOST_DIGITS = 4_000  # Python writes no longer number
ROLES = ("system", "user", "assistant")
PERSONAL = frozenset(
    """name firstname lastname fullname givenname familyname surname displayname nickname realname username user author
    annotator worker email emailaddress mail phone phonenumber telephone mobile address ip ipaddress ipaddr clientip
    remoteaddr hashedip birthday birthdate dateofbirth profileimageurl avatar avatarurl ssn""".split()  # noqa: SIM905
)
PERSONAL_ENDS = ("email", "emailaddress", "username", "ipaddress", "phonenumber")
LONGEST_ADDRESS = 300
NUMBERED = re.compile(r"[0-9a-fA-F]*[.:][0-9a-fA-F.:]*")  # perhaps an IP address
EMAIL = re.compile(r"[^\s@<>]+@[^\s@<>]+\.[^\s@<>.]+")
ORIGIN = {"name", "format", "source", "licence"}  # of an imported row, where the ledger's own format holds it

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)  # of a reader

_LEFT_OUT = object()


@dataclass(frozen=True)
class Storing:
    """How rows are made storable. `alias` gives the name for a rater whose own is an address; None keeps it all."""

    alias: Callable[[str], str] | None = None
    without: Counter[str] = field(default_factory=Counter)  # the values left out of kept rows, by reason

    def record(self, row: Record) -> Record:
        """The same row as the ledger can hold it. Raises `Dropped`."""
        if not row.said:
            raise Dropped("nothing is said of the reply")
        if not row.messages or row.messages[-1].role != "user":
            raise Dropped("the conversation does not end with a user's turn")
        return Record(
            tuple(Message(_one_of(ROLES, each.role, "a turn"), _said(each.content, "a turn")) for each in row.messages),
            tuple(Reply(_said(each.text, "a reply"), _named(each.model), _named(each.id)) for each in row.replies),
            tuple(self._annotation(each, len(row.replies)) for each in row.said),
            self.extra(row.extra),
            _named(row.message),
        )

    def extra(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The other fields of a row as JSON has them, without personal ones."""
        found = json_form(fields, self.without)
        return found if self.alias is None else without_personal(found, self.without)

    def _annotation(self, said: Annotation, replies: int) -> Annotation:
        kind = named(said.kind)
        if kind is None or kind.trace:
            raise Dropped("it says what cannot be said here")
        of = _whole_numbers(said.of)
        if len(set(of)) != len(of) or not all(0 <= each < replies for each in of):
            raise Dropped("it says something of a reply that is not there")
        rater = _named(said.rater)
        strength = None if said.strength is None else _one_of((1, 2, 3, 4, 5), _whole(said.strength), "a strength")
        made = Annotation(
            said.kind,
            of,
            self.alias(rater) if rater and self.alias and is_address(rater) else rater,
            _moment(said.at),
            _said(said.choice, "a choice"),
            strength,
            _whole_numbers(said.ranks),
            bool(_one_of((0, 1), said.all_wrong, "all_wrong")),
            _whole(said.value),
            _said(said.text, "a text"),
            _said(said.label, "a label"),
            _said(said.words, "a comment"),
            tuple(dict.fromkeys(_one_of(REASONS, each, "a reason") for each in said.reasons)),
            {_named(name): _plain(each) for name, each in said.more.items()},
        )
        if not kind.possible(made):
            raise Dropped("it says what cannot be said here")
        return made


def row_or_reason(raw: Mapping[str, Any] | Unread, form: Format, storing: Storing) -> Record | str:
    """A row of a file as a record that the ledger can hold, or the reason that it is left out."""
    if isinstance(raw, Unread):
        return raw.why
    try:
        return storing.record(form.record(dict(raw)))
    except Dropped as reason:
        return str(reason)
    except UNREADABLE:
        return f"not as {form.name} has it"


def json_form(value: Any, without: Counter[str]) -> Any:
    """A value as JSON has it: no NaN, no half of a character, no number beyond 64 bits; times and decimals as text.

    What has no such form is left out of its dict, null in its list, and counted by reason.
    """
    found = _json_form(value, without, 0)
    return None if found is _LEFT_OUT else found


def _json_form(value: Any, without: Counter[str], depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return mended(str(value))
    if isinstance(value, int):
        return _number(int(value), without)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth == DEEPEST:
        return _leave_out("nested too deeply", without)
    if isinstance(value, Mapping):
        made = {mended(str(name)): _json_form(each, without, depth + 1) for name, each in value.items()}
        return {name: each for name, each in made.items() if each is not _LEFT_OUT}
    if isinstance(value, list | tuple | set | frozenset):
        listed = [_json_form(each, without, depth + 1) for each in value]
        return [None if each is _LEFT_OUT else each for each in listed]
    if hasattr(value, "tolist"):  # numpy's
        return _json_form(value.tolist(), without, depth + 1)
    if value != value:  # not a number, and not a time
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    return _leave_out("bytes" if isinstance(value, bytes | bytearray | memoryview) else "no value of JSON", without)


def _number(value: int, without: Counter[str]) -> Any:
    if -LARGEST <= value < LARGEST:
        return value
    if value.bit_length() > 3 * MOST_DIGITS:
        return _leave_out("too large a number", without)
    return str(value)


def _leave_out(reason: str, without: Counter[str]) -> Any:
    without[reason] += 1
    return _LEFT_OUT


def without_personal(fields: dict[str, Any], without: Counter[str]) -> dict[str, Any]:
    """The fields, as JSON has them, without those that say who somebody is, at any depth; counts what it leaves out."""
    kept = {}
    for name, value in fields.items():
        if name == "imported" and isinstance(value, dict) and value.keys() == ORIGIN:
            kept[name] = value  # the name is the file's
        elif is_personal(name) or (isinstance(value, str) and is_address(value)):
            without["personal"] += 1
        else:
            kept[name] = _without_personal(value, without)
    return kept


def _without_personal(value: Any, without: Counter[str]) -> Any:
    if isinstance(value, dict):
        return without_personal(value, without)
    return [_without_personal(each, without) for each in value] if isinstance(value, list) else value


def is_personal(name: str) -> bool:
    """Whether a field of this name says who somebody is."""
    plain = re.sub(r"[\W_]", "", name.casefold())
    return plain in PERSONAL or plain.endswith(PERSONAL_ENDS)


def is_address(value: str) -> bool:
    """Whether a text is an e-mail address or an IP address, and nothing else."""
    if len(value) > LONGEST_ADDRESS:
        return False
    value = value.strip()
    if "@" in value:
        return EMAIL.fullmatch(value) is not None
    if not NUMBERED.fullmatch(value):
        return False
    try:
        return bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def _said(value: Any, what: str) -> str:
    """A text that people read or models learn from. Raises `Dropped`; half of a character is not mended there."""
    if type(value) is str and value.isascii() and len(value) <= LONGEST_MESSAGE:
        return value
    if not isinstance(value, str):
        raise Dropped(f"{what} is not text")
    if len(value) > LONGEST_MESSAGE:
        raise Dropped("a text that is too long")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Dropped("half of a character (a lone surrogate)") from None
    return str(value)


def _named(value: Any) -> str:
    """The name of a rater, a model or a reply; a number is one, too. Raises `Dropped`."""
    if type(value) is str and value.isascii() and len(value) <= LONGEST_MESSAGE:
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):  # what Parquet and pandas have for none
        return ""
    if isinstance(value, int) and abs(value) < LARGEST:
        return str(value)
    if not isinstance(value, str | float | UUID):
        raise Dropped("a name that is not text")
    # Names that differ in half of a character stay different.
    return _said(str(value).encode("utf-8", "backslashreplace").decode(), "a name")


def _plain(value: Any) -> Any:
    """A field of a kind of feedback that has none in `Annotation`. Raises `Dropped`."""
    if isinstance(value, str):
        return _said(value, "a text")
    without: Counter[str] = Counter()
    found = json_form(value, without)
    if without:
        raise Dropped("it says what cannot be said here")
    return found


def _moment(value: Any) -> str:
    """A time as the ledger has it, in UTC to the millisecond; empty for none. Raises `Dropped`."""
    if value is None or (isinstance(value, str) and not value):
        return ""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError):
        raise Dropped("a time that is no time") from None


def _whole(value: Any) -> int:
    """A whole number of 64 bits, also as a float of the same value. Raises `Dropped`."""
    if type(value) is int and -LARGEST <= value < LARGEST:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) >= LARGEST:
        raise Dropped("a number that is not whole")
    if int(value) != value:
        raise Dropped("a number that is not whole")
    return int(value)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise Dropped("numbers that are no list")
    return tuple(map(_whole, values))


def _one_of(possible: Any, value: Any, what: str) -> Any:
    """The same value. Raises `Dropped` if it is none of those possible."""
    if isinstance(value, dict | list | tuple | set) or value not in possible:
        raise Dropped(f"{what} that is unknown here")
    return value
