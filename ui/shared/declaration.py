"""The declaration of a page: its path, the role it requires, and how it is built."""

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
    """One page: `build` makes its Gradio blocks, whose events may hold only what `gradio_guard.Guard` lets through.

    The role covers everything below the page's path, events included. Raises `ValueError` on an invalid path or role.
    """

    path: str
    build: Callable[[Assistant], gr.Blocks]
    role: str = ""  # the least role that may see it; empty: everyone whom the gate admits
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
