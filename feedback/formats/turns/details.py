"""The blocks that Open WebUI folds away inside of a reply: what the model thought, and the tools that it called."""

import re

from feedback.formats.turns.dropped import Dropped

BLOCK = re.compile(r'<details\b[^>]*\btype="(\w+)"[^>]*>')
EDGE = re.compile(r"<details\b[^>]*>|</details>")


def without_reasoning(text: str) -> str:
    """A reply without what was thought before it. Raises `Dropped` if tools were called, or a block does not end."""
    while block := BLOCK.search(text):
        if block[1] != "reasoning":
            raise Dropped("a reply that called tools")
        text = (text[: block.start()] + text[_end(text, block.end()) :].lstrip("\n")).lstrip("\n")
    return text


def _end(text: str, at: int) -> int:
    """The place after the end of the block that is open at a place."""
    depth = 1
    for edge in EDGE.finditer(text, at):
        depth += -1 if edge[0] == "</details>" else 1
        if depth == 0:
            return edge.end()
    raise Dropped("a reply whose reasoning does not end")
