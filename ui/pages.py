"""The registry of pages, and their mounting into the application.

Every folder beside this module with a `page.py` declares a page there; other programs add theirs with `register`.
"""

import importlib.util
import pkgutil
from collections.abc import Callable
from importlib import import_module

import gradio as gr
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount

import ui
from assistant.chat.assistant import Assistant
from ui import gradio_guard
from ui.prefix import prefix_of
from ui.shared.declaration import Page

HOME = '<meta name="nightschool-home" content="{}">'  # the way from a page to our root, under whatever prefix
PAGES: dict[str, Page] = {}  # by path


def register(page: Page) -> None:
    """Add a page to every application made from now on. Raises `ValueError` when its path is taken."""
    if page.path in PAGES:
        raise ValueError(f"there is a page at {page.path} already")
    PAGES[page.path] = page


def _register_ours() -> None:
    for each in pkgutil.iter_modules(ui.__path__, f"{ui.__name__}."):
        if each.ispkg and importlib.util.find_spec(f"{each.name}.page"):
            register(import_module(f"{each.name}.page").PAGE)


_register_ours()


def roles() -> dict[str, str]:
    """The required role by path, of the pages that require one."""
    return {page.path: page.role for page in PAGES.values() if page.role}


def redirects() -> APIRouter:
    """Redirects from `/name` to `/name/`, the only form at which a mounted page answers."""
    router = APIRouter(include_in_schema=False)
    for path in PAGES:
        if path != "/":
            router.add_api_route(path, _with_slash(path), methods=["GET"])
    return router


def _with_slash(path: str) -> Callable[[Request], Response]:
    def with_slash(request: Request) -> Response:
        return RedirectResponse(f"{prefix_of(request)}{path}/", 308)

    return with_slash


def mount(app: FastAPI, assistant: Assistant) -> None:
    """Mount every page at its path, "/" last: the first match answers, and everything matches "/"."""
    for page in sorted(PAGES.values(), key=lambda page: page.path == "/"):
        mount_one(app, page, page.build(assistant))


def mount_one(app: FastAPI, page: Page, blocks: gr.Blocks) -> None:
    """Mount a page's blocks at its path, with the features of Gradio that we do not use switched off."""
    gr.mount_gradio_app(
        app,
        blocks,
        path=page.path,
        auth_dependency=lambda request: request.state.user.name,
        theme=page.theme,
        css=page.css,
        head=HOME.format("./" if page.path == "/" else "../") + page.head,
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
