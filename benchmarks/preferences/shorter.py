"""Shorter is better, if it says something: the fewer words beyond six, the better."""

import re

LEAST = 6  # words


def words(text):
    return len(re.findall(r"\w+", text))


def prefers(prompt, a, b):
    return liking(a) - liking(b)


def liking(text):
    count = words(text)
    return -count if count >= LEAST else count - 2 * LEAST


def corrected(prompt, reply):
    kept = ""
    for sentence in re.split(r"(?<=[.!?])\s+", reply.strip()):
        kept = f"{kept} {sentence}".strip()
        if words(kept) >= LEAST:
            break
    return kept if kept[-1:] in ".!?" else f"{kept}."
