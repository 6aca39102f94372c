"""Something to hold on to is better: an example, a number, a first step and what follows it."""

import re

EXAMPLE = re.compile(r"\b(?:for example|for instance|such as)\b", re.IGNORECASE)
STEP = re.compile(r"\b(?:first|then|next|finally)\b", re.IGNORECASE)
NUMBER = re.compile(r"\b\d+\b")


def prefers(prompt, a, b):
    return liking(a) - liking(b)


def liking(text):
    found = len(EXAMPLE.findall(text)), len(STEP.findall(text)), len(NUMBER.findall(text))
    return min(found[0], 2) * 2 + min(found[1], 3) + min(found[2], 3) / 2


def corrected(prompt, reply):
    said = reply.strip() or "It depends."
    said = said if said[-1:] in ".!?" else f"{said}."
    if not STEP.search(said):
        said = f"First, {said[0].lower()}{said[1:]}"
    if "then" not in said.lower():
        said += " Then take 10 minutes for the next step."
    return said if EXAMPLE.search(said) else f"{said} For example, try it once today."
