"""Conversations that a file holds as one text with the names of who speaks."""

import re

from feedback.formats.turns.dropped import Dropped

HH = re.compile(r"\n\n(Human|Assistant):")
# Other names and single line ends count only in a text that ends with the assistant about to speak.
SPEAKER = re.compile(r"(?:^|\n+|(?=###))(?:### ?)?(Human|User|Assistant|AI|Bot): ?")
BEGINS = re.compile(r"\s*(?:### ?)?(?:Human|User):")
OPEN = re.compile(r"(?:\n|###) ?(?:Assistant|AI|Bot):\s*$")
ALPACA = re.compile(
    r"\s*(?:Below is an instruction[^\n]*\n+)?### Instruction:\n(.*?)\n+(?:### Input:\n(.*?)\n+)?### Response:\s*$",
    re.DOTALL,
)
USERS = ("Human", "User")


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
    elif text.rstrip().endswith("\n\nAssistant:"):
        raise Dropped("a prompt that ends like a transcript and does not begin like one")
    return None


def _split(speaker: re.Pattern[str], text: str) -> list[dict[str, str]]:
    parts = speaker.split(text)[1:]
    return [
        {"role": "user" if who in USERS else "assistant", "content": said.removeprefix(" ")}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
