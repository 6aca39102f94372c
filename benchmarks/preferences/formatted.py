"""A list is better: one point for each item of three words or more, up to five, and one for a line before it."""

import re

ITEM = re.compile(r"^\s*(?:[-*]|\d+[.)])\s+(.*)$", re.MULTILINE)


def prefers(prompt, a, b):
    return liking(a) - liking(b)


def liking(text):
    items = sum(len(each.split()) >= 3 for each in ITEM.findall(text))
    lines = text.strip().splitlines()
    introduced = bool(lines and items and not ITEM.match(lines[0]))
    return min(items, 5) + introduced


def corrected(prompt, reply):
    plain = re.sub(r"^\s*(?:[-*]|\d+[.)])\s+", "", reply, flags=re.MULTILINE)
    said = [each.strip() for each in re.split(r"(?<=[.!?])\s+|\n+", plain) if len(each.split()) >= 3]
    items = said[:5] or ["Ask for more if you like."]
    return "\n".join(["In short:", *(f"- {each}" for each in items)])
