"""The reasons why a night has nothing to learn from, and what it learns from, in words."""

from collections import Counter
from collections.abc import Collection, Mapping

from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.kinds import current
from feedback.kinds.comparison import COMPARISON, TAKEN_BACK
from training.algorithms.base import Method
from training.data.tokenize import TOO_LONG
from training.loop.config import Config

LEARNS_FROM = {"pairs": "preferences", "thumbs": "thumbs", "ties": "ties", "demonstrations": "demonstrations"}
UNDECIDED = {  # choices that prefer no reply: one of them, and several
    "tie": ("a tie", "ties"),
    "both_bad": ("“both bad”", "“both bad”"),
    "cannot_tell": ("“can't tell”", "“can't tell”"),
}


def unused_by(method: str) -> str:
    """The reason why examples of kinds that a method does not learn from are left out."""
    return f"not used by {method}"


def only(examples: Examples, kinds: Collection[str]) -> Examples:
    """The examples of these kinds, with the counts of what was left out."""
    return Examples(**{kind: getattr(examples, kind) for kind in kinds}, left_out=examples.left_out)


def why_no_example(store: Database, examples: Examples, method: Method, config: Config) -> str:
    """The reason why there is no example of the kinds that a method needs, in words."""
    learns = learns_from(method, config)
    if undecided := no_preference(store):
        return f"nothing to learn from: {undecided}, and {learns}"
    if len(examples):
        return f"nothing to learn from: {learns}, and there are {in_words(examples)}"
    if not examples.left_out:
        return "nothing to learn from; nobody has rated a reply yet"
    unused = f": {learns}" if unused_by(method.name) in examples.left_out else ""
    return f"nothing to learn from{unused}; left out were {left_out_words(examples.left_out)}"


def learns_from(method: Method, config: Config) -> str:
    """The kinds of examples of which a method needs one or more, in words."""
    kinds = [LEARNS_FROM[kind] for kind in method.needed(config)]
    both = " of both kinds" if method.needs_contrast_with(config) else ""
    return f"{method.name} learns from {' and '.join(kinds)}{both}"


def without_contrast(examples: Examples, method: Method, config: Config) -> str:
    """What all thumbs are, in words, where a method cannot learn from that alone; empty if it can."""
    kinds = {thumb.wanted for thumb in examples.thumbs}
    if not method.needs_contrast_with(config) or examples.pairs or len(kinds) != 1:
        return ""
    kind, count = "up" if kinds.pop() else "down", len(examples.thumbs)
    thumbs = f"all {count:,} thumbs are" if count > 1 else "the only thumb is"
    return f"{thumbs} {kind}, and {learns_from(method, config)}"


def no_preference(store: Database) -> str:
    """What all comparisons are, in words, if not one of them prefers a reply; empty if one does, or there are none."""
    choices = Counter(row["choice"] for row in current.rows(store, COMPARISON) if row["usable"])
    choices.pop(TAKEN_BACK, None)
    if not choices or choices.keys() - UNDECIDED.keys():
        return ""
    if choices.total() == 1:
        return f"the one comparison is {UNDECIDED[next(iter(choices))][0]}"
    told = [f"{count:,} {UNDECIDED[choice][1]}" for choice, count in choices.most_common()]
    if len(told) == 1:
        return f"all {choices.total():,} comparisons are {UNDECIDED[next(iter(choices))][1]}"
    return f"none of {choices.total():,} comparisons prefers a reply ({', '.join(told)})"


def why_unfit(unfit: Mapping[str, int], max_length: int, examples: Examples) -> str:
    """The reason why no example is left once all are tokenized, in words; `unfit` counts those that were dropped."""
    if set(unfit) == {TOO_LONG}:
        return f"no example fits into {max_length:,} tokens ({in_words(examples)})"
    return f"no example is left to learn from ({in_words(examples)})"


def added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Add up two counts by reason."""
    return {reason: counts.get(reason, 0) + more.get(reason, 0) for reason in {**counts, **more}}


def in_words(examples: Examples) -> str:
    """The counts of a night's examples, in words."""
    counts = examples.counts()
    left_out = left_out_words(counts.pop("left_out"))
    kinds = ", ".join(f"{count} {plural(kind, count)}" for kind, count in counts.items() if count)
    return kinds + (f" (left out: {left_out})" if left_out else "")


def left_out_words(left_out: Mapping[str, int]) -> str:
    """What was left out, in words: "tie: 3, no consent: 7"."""
    return ", ".join(f"{reason}: {count}" for reason, count in left_out.items())


def plural(kind: str, count: int) -> str:
    """The name of a kind of feedback after a count: one comparison, two comparisons, thumbs up."""
    return kind.replace("_", " ") if count == 1 or kind.startswith("thumbs") else f"{kind}s"
