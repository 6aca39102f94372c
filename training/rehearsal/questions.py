"""The prompts of a rehearsal: those that the rater rates, and others that nobody has asked before."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from feedback.errors import Refused

PROMPTS = Path(__file__).with_name("prompts.txt")


def questions(options: SimpleNamespace) -> tuple[list[str], list[str]]:
    """The prompts to rate replies to, and others to judge on. Raises `Refused` on counts below 1 or too high."""
    every = PROMPTS.read_text(encoding="utf-8").splitlines()
    rated, what, least = options.comparisons, "comparisons", 1
    if options.interactions is not None:
        rated, what, least = options.interactions, "interactions", 2  # a correction and a comparison
    unseen = options.prompts
    for count, name, lowest in ((rated, f"--{what}", least), (unseen, "--prompts", 1)):
        if count < lowest:
            raise Refused(f"{name} is at least {lowest}, not {count}")
    if rated + unseen > len(every):
        raise Refused(f"there are {len(every)} prompts, too few for {rated} {what} and {unseen} unseen ones")
    return every[:rated], every[len(every) - unseen :]


def halves(prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every second prompt, to correct a reply to, and the others, to compare two; these are one more if need be."""
    return list(prompts[1::2]), list(prompts[::2])
