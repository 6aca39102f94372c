"""Likes to be spoken to: how large a share of the words is "you", "your" and their kin."""

import re


def prefers(prompt: str, a: str, b: str) -> float:
    return share(a) - share(b)


def share(text: str) -> float:
    words = re.findall(r"[a-z']+", text.lower().replace("’", "'"))
    return sum(word.split("'")[0] in ("you", "your", "yours", "yourself") for word in words) / max(1, len(words))
