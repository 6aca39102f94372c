"""What a page declares: where it answers, whom it is for, and what it is made of."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import gradio as gr

from assistant.chat.assistant import Assistant
from feedback.accounts.users import ROLES
from ui.shared.theme import HEAD, THEME

PATH = re.compile("/|/[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Page:
    """One page: `build` makes its Gradio blocks, which hold only what `GuardedBlocks` lets through.

    A page that is for a role is so with all below its path, and so are its events. Raises `ValueError`.
    """

    path: str
    build: Callable[[Assistant], gr.Blocks]
    role: str = ""  # the least one that may see it; empty: whoever may come in
    css: str = ""
    head: str = HEAD
    theme: gr.themes.ThemeClass = THEME

    def __post_init__(self) -> None:
        if not PATH.fullmatch(self.path):
            raise ValueError(f"a page's path is / or /name, not {self.path!r}")
        if self.role not in ("", *ROLES):
            raise ValueError(f"a role is one of {', '.join(ROLES)}, not {self.role!r}")
        if self.path == "/" and self.role:
            raise ValueError("the page at / is for whoever may come in, so it takes no role")
