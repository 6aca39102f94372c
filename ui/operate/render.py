"""The operate page as HTML, rendered from the system status.

Everything that people and models wrote is escaped.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from feedback.accounts.users import User
from feedback.kinds import tally
from feedback.kinds.tally import Day
from feedback.records.methods import word_of
from feedback.records.nights import Night
from ui.operate.view import SystemStatus, doing, headline, in_words, outcome
from ui.shared import plots, time_format
from ui.shared.widgets import MARKS, chip, sentence


def show_account(user: User) -> str:
    """The header: the page's name, the account with its log-out button, and the link to the chat."""
    leave = '<form method="post" action="../logout"><button id="log-out">Log out</button></form>'
    who = f"<span>{escape(user.name)}</span>{leave}" if user.password_hash else ""
    nav = f'<nav><a id="to-chat" href="../">‹ Chat</a>{who}</nav>'
    return f"<header><h1>Nightschool <small>operate</small></h1>{nav}</header>"


def show_headline(house: SystemStatus) -> str:
    """The headline, which says whether all is well."""
    said = headline(house)
    title, words = escape(sentence(said.title)), escape(sentence(said.words))
    return (
        f'<div class="headline {said.state}" role="status"><span class="sign" aria-hidden="true">{MARKS[said.state]}'
        f'</span><div><p class="title">{title}</p><p>{words}</p></div></div>'
    )


def tile(name: str, value: str, *lines: str) -> str:
    """A fact with its name above and what explains it below. The lines are escaped here; `value` is HTML."""
    below = "".join(f'<p class="line" title="{escape(line)}">{escape(line)}</p>' for line in lines if line)
    return f'<section class="tile"><h2>{name}</h2><p class="value">{value}</p>{below}</section>'


def show_tiles(house: SystemStatus) -> str:
    """The four tiles: serving, last night, next night, new feedback."""
    tiles = (_serving(house), _last_night(house), _next_night(house), _new_feedback(house))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _serving(house: SystemStatus) -> str:
    if not house.promotions:
        return tile("Serving", "the base model", "nothing has been promoted yet")
    newest = house.promotions[0]
    since = f"since {house.clock(newest.at)}, by {house.who(newest.user)}"
    return tile("Serving", escape(newest.adapter or "the base model"), since, sentence(newest.reason))


def _last_night(house: SystemStatus) -> str:
    last = house.last
    if last is None:
        first = "the first one is running" if house.running else "“Run now” below starts the first one"
        return tile("Last night", "none yet", first)
    words, state = outcome(last, is_running=False)
    if last.ended_at is None:
        return tile("Last night", chip(words, state), f"night {last.id}, begun {house.clock(last.started_at)}")
    took = (time_format.parsed(last.ended_at) - time_format.parsed(last.started_at)).total_seconds()
    when = f"night {last.id}, {house.clock(last.ended_at)}, in {time_format.span(took)}"
    return tile("Last night", chip(words, state), when, sentence(in_words(last)))


def _next_night(house: SystemStatus) -> str:
    standing = house.schedule
    more = ""
    if standing and standing.every_new:
        more = f"also after {standing.every_new} new pieces of feedback"
    if standing is None:
        return tile("Next night", '<a href="#schedule-heading">no schedule yet: set one</a>', "until then, “Run now”")
    if house.due is None:
        return tile("Next night", "switched off", more or "nights start by hand only")
    when = escape(time_format.clock(house.due, house.zone, house.now))
    return tile("Next night", when, time_format.away(house.due, house.now), more)


def _new_feedback(house: SystemStatus) -> str:
    trained = next((night for night in house.nights if night.state == "done"), None)
    pieces = "piece" if house.new_feedback == 1 else "pieces"
    since = f"{pieces} since night {trained.id}" if trained else f"{pieces} so far"
    return tile(
        "New feedback", f"{house.new_feedback:,}", since, "waiting to be learned from" if house.new_feedback else ""
    )


def show_night(house: SystemStatus, night: Night | None, steps: Sequence[dict[str, Any]]) -> str:
    """A night's progress, or how it ended, and its curves."""
    if night is None:
        return (
            '<p class="empty">No night has run yet. It trains an adapter on what people said; curves appear here.</p>'
        )
    running = house.running is not None and house.running.id == night.id
    words, state = outcome(night, running)
    begun = f"begun {house.clock(night.started_at)}"
    if running:
        share = 100 * night.step / night.steps if night.steps else 0
        told = sentence(f"{doing(night)}; {night.reason}" if night.reason else doing(night))
        bar = f'<div class="progress" role="progressbar" aria-label="Training" aria-valuenow="{share:.0f}">'
        bar += f'<i style="width:{share:.1f}%"></i></div>'
    else:
        told, bar = sentence(in_words(night) or "its process is gone; the next night goes on where it was"), ""
    head = (
        f'<div class="night-head"><strong>Night {night.id}</strong> {chip(words, state)}'
        f'<span class="when">{escape(begun)}, {escape(word_of(night.method))}</span></div>'
        f'<p class="told" id="told">{escape(told)}</p>{bar}'
    )
    return head + curves(night, steps)


def curves(night: Night, steps: Sequence[dict[str, Any]]) -> str:
    """Loss, margin, accuracy, KL, and the gain on the validation set (if it is large enough), over the steps."""

    def line(name: str) -> list[tuple[float, float]]:
        return [(each["step"], each[name]) for each in steps if isinstance(each.get(name), int | float)]

    total = max(night.steps, int(steps[-1]["step"]) if steps else 0)
    gain = line("validation_gain")
    shown = [
        plots.curve("Loss", "lower is better", {"": line("loss")}, total),
        plots.curve("Margin", "preferred over rejected, nats", {"": line("rewards/margins")}, total, axis=(0,)),
        plots.curve("Accuracy", "share preferred", {"": line("rewards/accuracies")}, total, axis=(0, 1)),
        plots.curve("KL from the base", "nats per token, exact, T=1", {"": line("kl")}, total, axis=(0,), noisy=False),
    ]
    if gain:
        what = "tokens of preferred replies it was not taught"
        shown.append(plots.curve("Gain", what, {"": gain}, total, axis=(0,), noisy=False))
    return f'<div class="curves" id="curves" data-steps="{len(steps)}">{"".join(shown)}</div>'


def show_said(days: Sequence[Day]) -> str:
    """Feedback by day and kind."""
    total = sum(day.total for day in days)
    if not total:
        return f'<p class="empty">Nobody has rated a reply in the last {len(days)} days.</p>'
    last = len(days) - 1
    labelled = [
        (f"{day.day.day} {day.day:%b}" if (last - place) % 6 == 0 else "", f"{day.day:%a} {day.day.day} {day.day:%b}",
         day.counts)
        for place, day in enumerate(days)
    ]  # fmt: skip
    today = f"{days[-1].total} today, {total:,} in {len(days)} days"
    return f'<p class="told">{today}</p>{plots.bars(labelled, tally.titles())}'


def show_schedule(house: SystemStatus) -> str:
    """The current schedule, in one sentence."""
    standing = house.schedule
    if standing is None:
        return '<p class="told">There is none yet: nights start by hand only. Set one here.</p>'
    causes = [f"at {standing.cron} ({standing.time_zone})"] if standing.cron else []
    causes += [f"after {standing.every_new} new pieces of feedback"] if standing.every_new else []
    on = "Nights start" if standing.enabled else "Switched off; it would be"
    said = f"{on} {' and '.join(causes) or 'by hand only'}, set {house.clock(standing.at)}"
    return f'<p class="told">{escape(sentence(said))}</p>'


def show_times(times: Sequence[datetime], enabled: bool, saved: bool) -> str:
    """The next times of a schedule, in their own time zone."""
    if not times:
        return '<p class="when">Not by the clock.</p>'
    heading = "The next five times" if saved else "The next five times, once it is saved"
    if not enabled:
        heading = "Switched off; the next five times would be"
    items = "".join(f"<li>{escape(time_format.calendar(each, each.tzinfo or UTC))}</li>" for each in times)
    return f'<p class="when">{heading}</p><ol class="times">{items}</ol>'
