"""Likes numbers and examples, and no hedging."""

import re

CONCRETE = re.compile(r"\d+|\bfor (?:example|instance)\b|\bsuch as\b", re.IGNORECASE)
HEDGING = re.compile(
    r"\b(?:may|might|could|perhaps|possibly|probably|generally|usually|typically|often|sometimes|various|several)\b",
    re.IGNORECASE,
)


def prefers(prompt: str, a: str, b: str) -> float:
    return balance(a) - balance(b)


def balance(text: str) -> int:
    return len(CONCRETE.findall(text)) - len(HEDGING.findall(text))
