"""Likes a reply in fewer words."""


def prefers(prompt: str, a: str, b: str) -> float:
    return len(b.split()) - len(a.split())
