"""Conversations that a file holds as one text with the names of who speaks."""

import re

from feedback.formats.turns.dropped import Dropped

HH = re.compile(r"\n\n(Human|Assistant):")
# Other names and single line ends count only in a text that ends with the assistant about to speak.
SPEAKER = re.compile(r"(?:^|\n+|(?=###))(?:### ?)?(System|Human|User|Assistant|AI|Bot): ?")
BEGINS = re.compile(r"\s*(?:### ?)?(?:System|Human|User):")
OPEN = re.compile(r"(?:\n|###) ?(?:Assistant|AI|Bot):\s*$")
# Vicuna's templates, the older and the newer one: a system text may come first, and bears no name.
VICUNA = (
    (re.compile(r"(?:^|\n)### ?(Human|Assistant): ?"), re.compile(r"\n### ?Assistant:\s*$")),
    (re.compile(r"(?:^|\s+|</s>)(USER|ASSISTANT): ?"), re.compile(r"(?:\s|</s>)ASSISTANT:\s*$")),
)
ALPACA = re.compile(
    r"\s*(?:Below is an instruction[^\n]*\n+)?### Instruction:\n(.*?)\n+(?:### Input:\n(.*?)\n+)?### Response:\s*$",
    re.DOTALL,
)
ROLES = {"System": "system", "Human": "user", "User": "user", "USER": "user"}  # all others are the assistant
ENDS_LIKE_ONE = "a prompt that ends like a transcript and does not begin like one"


def turns(text: str) -> list[dict[str, str]] | None:
    """The turns of a transcript, the last one empty if the assistant is about to speak; None if it is no transcript.

    Raises `Dropped` on a text that ends like a transcript and does not begin like one.
    """
    if asked := ALPACA.match(text):
        return [
            {"role": "user", "content": "\n".join(filter(None, asked.groups()))},
            {"role": "assistant", "content": ""},
        ]
    if BEGINS.match(text):
        if text.startswith("\n\nHuman:"):
            # One space follows the colon; any other whitespace belongs to the turn.
            return _split(HH, text)
        if OPEN.search(text):
            return [each | {"content": each["content"].strip()} for each in _split(SPEAKER, text.strip())]
        if text.startswith("Human:") and "\n\nAssistant:" in text:
            return _split(HH, f"\n\n{text}")
        return None
    for speaker, is_open in VICUNA:
        if is_open.search(text):
            return _vicunas(speaker, text.strip())
    is_asked = any(ROLES.get(each[1]) == "user" for each in SPEAKER.finditer(text))
    if text.rstrip().endswith("\n\nAssistant:") or (OPEN.search(text) and is_asked):
        raise Dropped(ENDS_LIKE_ONE)
    return None


def _vicunas(speaker: re.Pattern[str], text: str) -> list[dict[str, str]]:
    """The turns of a transcript that begins with a system text, or with a user. Raises `Dropped` on any other."""
    first = speaker.search(text)
    if first is None or first[1] not in ROLES:
        raise Dropped(ENDS_LIKE_ONE)
    system = text[: first.start()].strip()
    told = [{"role": "system", "content": system}] if system else []
    return told + [each | {"content": each["content"].strip()} for each in _split(speaker, text)]


def _split(speaker: re.Pattern[str], text: str) -> list[dict[str, str]]:
    parts = speaker.split(text)[1:]
    return [
        {"role": ROLES.get(who, "assistant"), "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
