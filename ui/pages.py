"""The pages there are, and how each is put where it answers.

Every folder beside this module that has a `page.py` declares one there; a program that brings its own calls `register`.
"""

import importlib.util
import pkgutil
from collections.abc import Callable
from importlib import import_module

import gradio as gr
from fastapi import APIRouter, FastAPI
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount

import ui
from assistant.chat.assistant import Assistant
from ui import gradio_guard
from ui.shared.declaration import Page

PAGES: dict[str, Page] = {}  # by path


def register(page: Page) -> None:
    """Let a page be served by every application made from now on. Raises `ValueError` where its path is taken."""
    if page.path in PAGES:
        raise ValueError(f"there is a page at {page.path} already")
    PAGES[page.path] = page


def _register_ours() -> None:
    for each in pkgutil.iter_modules(ui.__path__, f"{ui.__name__}."):
        if each.ispkg and importlib.util.find_spec(f"{each.name}.page"):
            register(import_module(f"{each.name}.page").PAGE)


_register_ours()


def roles() -> dict[str, str]:
    """Which role each page takes that takes one, by its path."""
    return {page.path: page.role for page in PAGES.values() if page.role}


def redirects() -> APIRouter:
    """From each page's name to its own address, which ends in a slash: what is mounted answers only that."""
    router = APIRouter(include_in_schema=False)
    for path in PAGES:
        if path != "/":
            router.add_api_route(path, _with_slash(path), methods=["GET"])
    return router


def _with_slash(path: str) -> Callable[[], Response]:
    def with_slash() -> Response:
        return RedirectResponse(f"{path}/", 308)

    return with_slash


def mount(app: FastAPI, assistant: Assistant) -> None:
    """Let every page answer under its path; the first that fits answers, and everything fits under "/"."""
    for page in sorted(PAGES.values(), key=lambda page: page.path == "/"):
        mount_one(app, page, page.build(assistant))


def mount_one(app: FastAPI, page: Page, blocks: gr.Blocks) -> None:
    """Let a page's blocks answer under its path, without anything that a page here has no use for."""
    gr.mount_gradio_app(
        app,
        blocks,
        path=page.path,
        auth_dependency=lambda request: request.state.user.name,
        theme=page.theme,
        css=page.css,
        head=page.head,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        show_error=False,
    )
    mounted = app.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = gradio_guard.guard(blocks, mounted.app)
