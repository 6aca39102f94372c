"""The operate page's lists as HTML: adapters with their evidence, nights, occurrences, and the audit trail.

Everything that people and models wrote is escaped.
"""

from html import escape
from typing import Any

from feedback.records.adapters import BASE, Adapter
from feedback.records.audit import TERMINAL, AuditEntry
from feedback.records.methods import word_of
from feedback.records.nights import Night
from ui.operate.view import SystemStatus, doing, in_words, learned_from, outcome
from ui.shared import plots, time_format
from ui.shared.widgets import chip, sentence

ADAPTERS_SHOWN = 12
DONE = {
    "promote": "promoted",
    "start night": "started night",
    "cancel night": "cancelled night",
    "import": "imported",
    "export to": "exported to",
    "back up to": "backed up to",
    "restore": "restored",
    "forget": "forgot",
    "add user": "added user",
    "set role": "changed the role of",
    "disable user": "disabled",
    "enable user": "enabled",
    "remove user": "removed user",
    "end sessions": "ended the sessions of",
    "take over": "gave earlier chats to",
    "make token of": "made a token of",
    "revoke token of": "revoked a token of",
}


def show_adapters(house: SystemStatus) -> str:
    """The newest adapters with their evidence, and the base; each with a button if it can be promoted."""
    served = {each.adapter for each in house.promotions}
    shown = [_adapter(house, each, each.id in served) for each in house.adapters[:ADAPTERS_SHOWN]]
    more = len(house.adapters) - ADAPTERS_SHOWN
    rest = f'<p class="empty">… and {more} older ones.</p>' if more > 0 else ""
    serves = house.serving is None
    base = (
        f'<li class="adapter {"serving" if serves else ""}"><div class="top"><strong>the base model</strong>'
        f"{chip('serving', 'well') if serves else ''}{'' if serves else _promote(BASE)}</div>"
        '<p class="line">as it came, without anything learned</p></li>'
    )
    risk = f'<p class="when">Risk of false promotions: {escape(house.risk)}.</p>'
    return f'<ul class="adapters">{"".join(shown)}{base}</ul>{rest}{risk}'


def _promote(name: str) -> str:
    return f'<button class="promote" data-name="{escape(name)}">Promote…</button>'


def _adapter(house: SystemStatus, adapter: Adapter, has_served: bool) -> str:
    serves = adapter.id == house.serving
    if serves:
        state = chip("serving", "well")
    elif adapter.verdict == "refused":
        state = chip("refused", "note")
    else:
        state = f'<span class="chip">{"has served" if has_served else escape(adapter.verdict)}</span>'
    offered = "" if serves or adapter.verdict == "refused" else _promote(adapter.id)
    made = f"{house.clock(adapter.created_at)}, {word_of(adapter.method)}"
    return (
        f'<li class="adapter {"serving" if serves else ""}" data-adapter="{escape(adapter.id)}"><div class="top">'
        f'<strong>{escape(adapter.id)}</strong>{state}<span class="when">{escape(made)}</span>{offered}</div>'
        f'<p class="line">{escape(sentence(in_words(adapter)))}</p>{evidence(adapter)}</li>'
    )


def evidence(adapter: Adapter) -> str:
    """The gate's measurements: held-out win rate with its interval, KL, length, and each check in words."""
    found = adapter.evidence
    facts = []
    held_out = found.get("held_out") or {}
    if held_out.get("count") and "rate" in held_out:
        rate, of = held_out["rate"], held_out["count"]
        low, high = held_out.get("low", rate), held_out.get("high", rate)
        said = f"{100 * low:.0f} to {100 * high:.0f} %, {held_out.get('preferred', rate * of):g} of {of}"
        facts.append(
            f"<dt>Held-out win rate</dt><dd>{100 * rate:.0f} % {plots.interval(low, rate, high)}"
            f'<span class="when">{said}</span></dd>'
        )
    elif held_out.get("next_look"):
        there, following = (f"{held_out[each]:,}" for each in ("conversations", "next_look"))
        facts.append(f"<dt>Held-out win rate</dt><dd>next look at {following} conversations, of {there} now</dd>")
    elif held_out:
        facts.append("<dt>Held-out win rate</dt><dd>too little was said to tell</dd>")
    if "kl_per_token" in found:
        words = found.get("kl_words") or f"{plots.number(found['kl_per_token'])} nats per token"
        facts.append(f"<dt>KL from the base</dt><dd>{escape(words)}</dd>")
    if "length_ratio" in found:
        facts.append(f"<dt>Length of replies</dt><dd>{found['length_ratio']:.2f} × what served</dd>")
    checks = "".join(
        f'<li class="{"well" if each.get("passed") else "trouble"}"><span aria-hidden="true">'
        f"{'✓' if each.get('passed') else '✕'}</span> {escape(str(each.get('words') or each.get('name', '')))}</li>"
        for each in found.get("checks", [])
    )
    facts_html = f'<dl class="facts">{"".join(facts)}</dl>' if facts else ""
    return facts_html + (f'<ul class="checks">{checks}</ul>' if checks else "")


def show_question(house: SystemStatus, name: str | None) -> str:
    """The question before a promotion: what it would do, with the evidence for it."""
    adapter = next((each for each in house.adapters if each.id == name), None)
    return (
        f"<p><strong>Let {escape(name or 'the base model')} serve</strong> instead of "
        f"{escape(house.serving or 'the base model')}, from the next message on? Replies being written are finished as "
        f"they were begun.</p>{evidence(adapter) if adapter else ''}"
    )


def show_nights(house: SystemStatus) -> str:
    """The newest nights as a table."""
    if not house.nights:
        return '<p class="empty">None yet.</p>'
    rows = "".join(_night_row(house, night) for night in house.nights)
    heads = "".join(
        f"<th>{each}</th>" for each in ("Night", "Outcome", "Began", "Took", "Learned from", "In words", "")
    )
    return f'<table class="rows"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _night_row(house: SystemStatus, night: Night) -> str:
    running = house.running is not None and house.running.id == night.id
    end = time_format.parsed(night.ended_at) if night.ended_at else house.now
    took = (
        time_format.span((end - time_format.parsed(night.started_at)).total_seconds())
        if night.ended_at or running
        else "–"
    )
    cells = {
        "Night": f"{night.id}",
        "Outcome": chip(*outcome(night, running)),
        "Began": escape(house.clock(night.started_at)),
        "Took": took,
        "Learned from": escape(learned_from(night) or "–"),
        "In words": escape(sentence(doing(night) if running else in_words(night))),
    }
    shown = "".join(f'<td data-label="{name}"><span>{words}</span></td>' for name, words in cells.items())
    see = f'<button class="see" data-name="{night.id}">Curves</button>' if night.steps else ""
    return f"<tr>{shown}<td>{see}</td></tr>"


def show_clock(house: SystemStatus) -> str:
    """The nights that came due by the clock or by new feedback: started, or skipped and why."""
    if not house.occurrences:
        return '<p class="empty">Nothing has come due yet.</p>'
    causes = {"clock": "by the clock", "feedback": "by new feedback"}
    items = "".join(
        f"<li>{chip(each.outcome, 'well' if each.outcome == 'started' else 'note')}"
        f'<span class="when">{escape(house.clock(each.at))}, {causes.get(each.cause, escape(each.cause))}</span>'
        f'<p class="line">{escape(sentence(each.reason or (f"night {each.night}" if each.night else "")))}</p></li>'
        for each in house.occurrences
    )
    return f'<ul class="log">{items}</ul>'


def show_trail(house: SystemStatus) -> str:
    """The audit trail, newest first."""
    if not house.trail:
        return '<p class="empty">Nobody has changed anything yet.</p>'
    items = "".join(
        f"<li><strong>{escape(doer(each))}</strong> {escape(DONE.get(each.action, each.action))} "
        f'<strong>{escape(each.subject)}</strong> <span class="when">{escape(house.clock(each.at))}</span>'
        f'<p class="line">{escape(detail_words(each.detail))}</p></li>'
        for each in house.trail
    )
    return f'<ul class="log">{items}</ul>'


def doer(deed: AuditEntry) -> str:
    """The author of an audit row: a person, the account that typed a command, or Nightschool itself."""
    typed = deed.detail.get(TERMINAL)
    return deed.user or (f"{typed} (command line)" if typed else "Nightschool")


def detail_words(detail: dict[str, Any]) -> str:
    """The detail of an audit row, in words."""
    detail = {name: value for name, value in detail.items() if name != TERMINAL}
    if set(detail) == {"reason"}:
        return sentence(str(detail["reason"]))
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in detail.items() if value is not None)
