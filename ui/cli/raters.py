"""`nightschool raters` and `leaderboard`: agreement between raters, and the adapters ranked by people's choices."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from assistant.command_line import data_option
from ui.cli.command import Command, existing, json_option, show

if TYPE_CHECKING:
    from feedback.raters.agreement import Rater, Share
    from feedback.raters.leaderboard import Rank


@click.command("raters", cls=Command)
@data_option
@json_option
def raters(data: Path, as_json: bool) -> None:
    """Show how far raters agree. Also what biases them, and the weight of each one's ratings."""
    from feedback.raters import agreement

    with existing(data) as store:
        found = agreement.report(store)
    meters = {
        "two people agree": found.agreement,
        "people agree with themselves": found.consistency,
        "the left reply was chosen": found.left,
        "the longer reply was chosen": found.longer,
    }
    lines = [f"{words:<30}{in_words(each)}" for words, each in meters.items()]
    lines += [f"{'Krippendorff alpha':<30}{'nothing yet' if found.alpha is None else f'{found.alpha:.3f}'}", ""]
    lines += [f"{each.name:<30}{one_rater(each)}" for each in found.raters]
    show(as_json, asdict(found), lines)


def in_words(share: "Share") -> str:
    """A share with its interval, in words."""
    if not share.whole:
        return "nothing yet"
    return f"{share.share:.1%} of {share.whole:,} ({share.low:.1%} to {share.high:.1%})"


def one_rater(rater: "Rater") -> str:
    """A rater's label, weight and score on gold comparisons, in words."""
    known = rater.reliability
    words = [rater.label] if rater.label else []
    words += [f"weight {known.weight:.2f}, {known.ratings} shared ratings"] if known else ["not compared yet"]
    words += [f"gold {in_words(rater.gold)}"] if rater.gold.whole else []
    return ", ".join(words)


@click.command("leaderboard", cls=Command)
@data_option
@json_option
def leaderboard(data: Path, as_json: bool) -> None:
    """Rank the adapters by people's choices."""
    from feedback.raters.leaderboard import board, choices

    with existing(data) as store:
        found = board(choices(store))
    lines = [
        f"{ranks(each):<8}{each.name:<24}{each.strength:+.2f} ({each.analytic[0]:+.2f} to {each.analytic[1]:+.2f})"
        f"  {each.choices:,} choices"
        for each in found.standings
    ]
    show(as_json, asdict(found), lines or ["nobody has chosen between two adapters yet"])


def ranks(standing: "Rank") -> str:
    """A rank, or the range of ranks that are possible."""
    best, worst = standing.rank
    return f"{best}." if best == worst else f"{best}.-{worst}."
