"""Building blocks of the pages: buttons, events, and notices of how something went."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import gradio as gr
from gradio.events import Dependency

from assistant.engine.request import EngineError
from feedback.errors import Refused

Updates = dict[Any, Any]  # control -> its new value
MARKS = {"well": "✓", "busy": "●", "note": "!", "trouble": "✕"}


def button(
    words: str, elem_id: str, variant: Literal["primary", "secondary", "stop"] = "secondary", visible: bool = True
) -> gr.Button:
    """A button no wider than its words."""
    return gr.Button(words, variant=variant, size="sm", elem_id=elem_id, visible=visible, scale=0, min_width=0)


def on(
    trigger: Callable[..., Dependency], act: Callable[..., Any], inputs: list[Any], outputs: list[Any], **more: Any
) -> Dependency:
    """An event with the settings of all our events: no concurrency limit, no progress shown, not in Gradio's API."""
    return trigger(
        act, inputs, outputs, show_progress="hidden", concurrency_limit=None, api_visibility="private", **more
    )


def in_turn(
    trigger: Callable[..., Dependency],
    act: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    once: str = "",
    **more: Any,
) -> Dependency:
    """An event that waits for those before it, so that quick clicks are all handled, in order.

    While an event with a key `once` waits or runs, another with the same key is dropped: no message is sent twice.
    """
    js = f"async (...inputs) => {{ await nightschool.turn('{once}'); return inputs; }}"
    done = on(trigger, act, inputs, outputs, js=js, trigger_mode="multiple", **more)
    for after in (done.then, done.failure):  # the first on success, the second on failure
        after(None, js="() => nightschool.over()", api_visibility="private")
    return done


@dataclass
class Told:
    """The sentence to show to the person; empty when all went well."""

    sentence: str = ""


@contextmanager
def telling() -> Iterator[Told]:
    """Catch `Refused` and `EngineError`, and keep their sentence for the page."""
    told = Told()
    try:
        yield told
    except (Refused, EngineError) as error:
        told.sentence = str(error)


def sentence(words: str) -> str:
    """Words as a sentence: a capital first, unless a name like night-0001 comes first; a full stop last."""
    words = words.strip()
    first = words.split(" ", 1)[0]
    capital = words[:1] if "-" in first or "_" in first else words[:1].upper()
    return capital + words[1:] + ("" if not words or words.endswith((".", "!", "?", "…")) else ".")


def notice(words: str, good: bool = False) -> str:
    """One sentence next to what was clicked, as HTML; empty without words."""
    kind, role = ("good", "status") if good else ("bad", "alert")
    return f'<p class="notice {kind}" role="{role}">{escape(sentence(words))}</p>' if words else ""


def chip(words: str, state: str) -> str:
    """A state as HTML, with a word, a sign and a colour."""
    return f'<span class="chip {state}"><span aria-hidden="true">{MARKS[state]}</span> {escape(words)}</span>'
