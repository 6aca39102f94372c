"""The formats there are, and how to tell which one a row is in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from feedback.errors import Refused
from feedback.formats import pairs, singles
from feedback.formats.record import Record

Reader = Callable[[dict[str, Any]], Record]
Writer = Callable[[Record, int], dict[str, Any]]
COMPARED = frozenset({"comparison", "ranked pair", "corrected pair"})
EVERYTHING = "everything"  # a format that holds every kind there is


@dataclass(frozen=True)
class Format:
    """How rows of one kind of file are read and written; `kinds` are what of the ledger it holds, or `EVERYTHING`."""

    name: str
    words: str
    marks: tuple[frozenset[str], ...]  # each a set of fields that only its rows have
    read: Reader
    write: Writer | None = None
    kinds: frozenset[str] = frozenset()


def _format(name: str, words: str, marks: str, read: Reader, write: Writer | None = None, kinds: str = "") -> Format:
    sets = tuple(frozenset(each.split()) for each in marks.split("|"))
    held = COMPARED if kinds == "compared" else frozenset(kinds.split())
    return Format(name, words, sets, read, write, held)


FORMATS = {  # the more telling marks first
    each.name: each
    for each in (
        _format(
            "nightschool",
            "all that was said",
            "messages replies said",
            singles.read_own,
            singles.write_own,
            EVERYTHING,
        ),
        _format("votes", "two replies and several raters' votes (import only)", "votes response_a", pairs.read_votes),
        _format("safety", "DICES (import only)", "safe_votes", singles.read_safety),
        _format(
            "arena", "Chatbot Arena 55k", "winner_model_a winner_tie", pairs.read_arena, pairs.write_arena, "comparison"
        ),
        _format(
            "argilla", "Argilla records", "fields responses", pairs.read_argilla, pairs.write_argilla, "comparison"
        ),
        _format(
            "ultrafeedback",
            "UltraFeedback",
            "instruction completions",
            pairs.read_ultrafeedback,
            pairs.write_ultrafeedback,
            "ranking",
        ),
        _format(
            "open-webui",
            "Open WebUI's feedback",
            "data snapshot",
            singles.read_open_webui,
            singles.write_open_webui,
            "thumb",
        ),
        _format(
            "trl-unpaired",
            "TRL unpaired preference",
            "completion label|thumb response",
            singles.read_unpaired,
            singles.write_unpaired,
            "thumb",
        ),
        _format("critiques", "critiques and revisions (import only)", "critique response", singles.read_critiques),
        _format(
            "trl",
            "TRL preference, explicit prompt",
            "prompt chosen rejected",
            pairs.read_trl,
            pairs.write_trl,
            "compared",
        ),
        _format("hh", "Anthropic HH", "", pairs.read_hh, pairs.write_hh, "compared"),
        _format(
            "trl-implicit",
            "TRL preference, implicit prompt",
            "chosen rejected",
            pairs.read_trl,
            pairs.write_trl_implicit,
            "compared",
        ),
        _format(
            "sharegpt", "ShareGPT", "conversations", singles.read_sharegpt, singles.write_sharegpt, "demonstration"
        ),
        _format("chatml", "ChatML text", "text", singles.read_chatml, singles.write_chatml, "demonstration"),
        _format(
            "sft",
            "conversational SFT",
            "messages|prompt completion",
            singles.read_sft,
            singles.write_sft,
            "demonstration",
        ),
        _format("prompts", "prompts for evaluation (nothing of them is kept)", "turns|corrects", singles.read_prompts),
    )
}
EXPORTED = tuple(name for name, each in FORMATS.items() if each.write)


def format_named(name: str) -> Format:
    """Raises `Refused` on an unknown name."""
    if name not in FORMATS:
        raise Refused(f"there is no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(raw: dict[str, Any]) -> Format:
    """The format that a row is in, by its fields. Raises `Refused` where it is none of them."""
    fields = {name for name, value in raw.items() if value is not None}
    if {"chosen", "rejected"} <= fields and "prompt" not in fields and isinstance(raw["chosen"], str):
        return FORMATS["hh"]
    for each in FORMATS.values():
        if any(marks and marks <= raw.keys() for marks in each.marks):
            return each
    raise Refused(f"no format known here has rows with {', '.join(sorted(raw)[:8])}; name one with --format")
