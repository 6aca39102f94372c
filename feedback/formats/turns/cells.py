"""Lists of turns that a table holds as text: as JSON, or as Python or NumPy print them."""

import ast
import json
import re
from typing import Any

from feedback.formats.turns.content import is_parts
from feedback.formats.turns.dropped import Dropped
from feedback.formats.turns.roles import content_of, role_of

LONGEST_LITERAL = 1_000_000  # characters; reading Python's notation takes a hundred times as much memory
BEGINS = re.compile(r"""\s*\[?\s*\{\s*['"]""")
TURN = re.compile(r"""['"](role|from)['"]\s*:\s*['"](system|user|human|assistant|gpt)['"]""")
# NumPy prints the objects of a list without commas. Inside of a text no line ends as such, so this is between them.
BETWEEN = re.compile(r"\}\s*\n\s*\{")


def opened(value: Any) -> Any:
    """The turns or parts that a text holds; any other value as it is. Raises `Dropped` on a list that is broken."""
    if not isinstance(value, str) or not BEGINS.match(value):
        return value
    try:
        found = _parsed(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if TURN.search(value[:2000]):
            raise Dropped("a list of turns that is neither JSON nor Python") from None
        return value
    return found if _is_turn(found) or _is_turns(found) else value


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        if len(value) > LONGEST_LITERAL:
            raise
        return ast.literal_eval(BETWEEN.sub("}, {", value.strip()))


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and role_of(value) is not None and content_of(value) is not None


def _is_turns(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        return False
    return all("role" in each or "from" in each for each in value) or is_parts(value)
