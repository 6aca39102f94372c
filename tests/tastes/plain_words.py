"""Likes plain words: the shorter on average, the better."""

import re


def prefers(prompt: str, a: str, b: str) -> float:
    return mean_length(b) - mean_length(a)


def mean_length(text: str) -> float:
    words = re.findall(r"[A-Za-z]+", text)
    return sum(map(len, words)) / max(1, len(words))
