"""The format of Argilla's records.

A record's replies are its fields whose names differ in a last letter or number: response_a and response_b, or
generation_0 and generation_1. What is left is the prompt, and the answers name the replies.
"""

import re
from collections.abc import Iterator
from typing import Any

from feedback.formats.base import Format, Row
from feedback.formats.record import Annotation, Dropped, Record, Reply, as_turns, messages, rest, text
from feedback.numerals import natural

NUMBERED = re.compile(r"(.+?)(?:[-_ ]|(?=\d+$)|(?<=[a-z])(?=[A-Z]$))(\d+|[A-Za-z])")  # response_a, response1, responseA
PROMPTS = ("prompt", "instruction", "question", "input", "query", "messages", "conversation", "chat")
CHOICES = ("tie", "both_bad", "cannot_tell")
WANTED = "fields other than a prompt and replies (response_a, generation_0 and the like)"


def read(raw: dict[str, Any]) -> Record:
    """Read a record of a prompt and two or more replies, and who preferred which."""
    fields = raw["fields"]
    names = _replies(fields)
    replies = tuple(Reply(text(fields[name]), _model(raw, name)) for name in names)
    said = tuple(_said(value, names, rater) for value, rater in _answers(raw.get("responses") or {}, names))
    extra = rest(raw, "fields", "responses")
    extra["metadata"] = rest(raw.get("metadata") or {}, *(f"model_{_last(name)}" for name in names))
    if system := fields.get("system"):
        extra["system"] = system
    return Record(messages(fields[_prompt(fields, names)]), replies, said, extra)


def _replies(fields: dict[str, Any]) -> list[str]:
    """The names of the fields that hold the replies. Raises `Dropped` if there are none, or two sorts of them."""
    stems: dict[str, list[str]] = {}
    for name, value in fields.items():
        if value is not None and (numbered := NUMBERED.fullmatch(name)):
            stems.setdefault(numbered[1], []).append(name)
    found = [sorted(names, key=_order) for names in stems.values() if len(names) > 1]
    if len(found) != 1:
        raise Dropped(WANTED)
    return found[0]


def _last(name: str) -> str:
    """The letter or number at the end of a name."""
    numbered = NUMBERED.fullmatch(name)
    assert numbered is not None, "it was found by this"
    return numbered[2].lower()


def _order(name: str) -> tuple[int, str]:
    last = _last(name)
    number = natural(last)
    return (0, last) if number is None else (number, "")


def _prompt(fields: dict[str, Any], replies: list[str]) -> str:
    """The name of the field that holds the prompt. Raises `Dropped` if several may."""
    others = [name for name, value in fields.items() if name not in (*replies, "system") and value]
    named = [name for name in others if name in PROMPTS]
    if len(named) == 1:
        return named[0]
    if len(others) != 1:
        raise Dropped(WANTED)
    return others[0]


def _answers(responses: Any, replies: list[str]) -> Iterator[tuple[Any, str]]:
    """The value and the rater of every submitted answer to the one question about which reply is better.

    In Argilla 1 a response has the answers to all questions; in Argilla 2 a question has everybody's.
    """
    answers: dict[str, list[tuple[Any, str]]] = {}
    if isinstance(responses, list):
        responses = {"": [each | {"value": each.get("values") or {}} for each in responses]}
    submitted = 0
    for question, given in responses.items():
        for each in given or []:
            if (each.get("status") or "submitted") != "submitted":
                continue
            submitted += 1
            values = each["value"] if not question else {question: {"value": each["value"]}}
            for name, answer in values.items():
                answers.setdefault(name, []).append((answer["value"], str(each.get("user_id") or "")))
    if not submitted:
        raise Dropped("nobody has submitted an answer")
    about = [name for name, given in answers.items() if any(_is_choice(value, replies) for value, _ in given)]
    about = ["preference"] if "preference" in answers else about
    if len(about) != 1:
        raise Dropped(
            "no answer names one of the replies" if not about else "several questions ask which reply is better"
        )
    yield from answers[about[0]]


def _is_choice(value: Any, replies: list[str]) -> bool:
    if isinstance(value, list):
        return bool(value) and all(
            isinstance(each, dict) and _named(each.get("value"), replies) is not None for each in value
        )
    return value in CHOICES or _named(value, replies) is not None


def _named(value: Any, replies: list[str]) -> int | None:
    """Which reply a value names: by the field, as "Response A" too, or by its last letter or number alone."""
    word = re.sub(r"[^a-z0-9]", "", str(value).lower())
    names = [(re.sub(r"[^a-z0-9]", "", name.lower()), _last(name)) for name in replies]
    return next((at for at, each in enumerate(names) if word in each), None)


def _said(value: Any, replies: list[str], rater: str) -> Annotation:
    """One person's answer. Raises `Dropped` on one that means nothing here."""
    of = tuple(range(len(replies)))
    if isinstance(value, list) and _is_choice(value, replies):
        ranked = {_named(each["value"], replies): int(each["rank"]) for each in value}
        if ranked.keys() != set(of):
            raise Dropped("a ranking that leaves replies out")
        ranks = tuple(ranked[each] for each in of)
    elif (best := _named(value, replies)) is not None:
        ranks = tuple(1 if each == best else 2 for each in of)
    elif value in CHOICES and len(of) == 2:
        return Annotation("comparison", of, rater, choice=value)
    else:
        raise Dropped("an answer that means nothing here")
    if len(of) > 2:
        order = sorted(set(ranks))
        return Annotation("ranking", of, rater, ranks=tuple(order.index(each) + 1 for each in ranks))
    choice = "tie" if ranks[0] == ranks[1] else "left" if ranks[0] < ranks[1] else "right"
    return Annotation("comparison", of, rater, choice=choice)


def _model(raw: dict[str, Any], name: str) -> str:
    return str((raw.get("metadata") or {}).get(f"model_{_last(name)}") or "")


def write(row: Record, number: int) -> dict[str, Any]:
    """Write a record with one answer."""
    (said,) = row.said
    left, right = (row.replies[each] for each in said.of)
    value = {"left": "response_a", "right": "response_b"}.get(said.choice, said.choice)
    return {
        "id": str(number),
        "fields": {"prompt": as_turns(row.messages), "response_a": left.text, "response_b": right.text},
        "metadata": {"model_a": left.model, "model_b": right.model} | row.extra.pop("metadata", {}),
        "responses": {"preference": [{"value": value, "user_id": said.rater}]},
    }


ROW = Row("fields responses", perhaps="metadata")
FORMAT = Format("argilla", "Argilla records", (ROW,), read, write, frozenset({"comparison"}))
