"""A page is declared: one file more is served where it says, to those it is for, and to nobody else."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from assistant.chat.assistant import Assistant
from feedback.database.database import Database
from tests.helpers.over_http import HERE, act_on_page, assistant, loaded, token_of
from ui.app import create_app
from ui.pages import PAGES, register
from ui.shared.declaration import Page

__all__ = ["assistant", "loaded"]  # fixtures
TOY = '''"""A page on which raters count their naps."""

import gradio as gr

from assistant.chat.assistant import Assistant
from feedback.errors import Refused
from ui.accounts.auth import page_user
from ui.gradio_guard import GuardedBlocks
from ui.shared.declaration import Page
from ui.shared.widgets import button, in_turn, notice, telling


def build(assistant: Assistant) -> gr.Blocks:
    def count(request: gr.Request, naps: str) -> str:
        user = page_user(request, assistant.store)
        with telling() as told:
            if not naps.isdecimal():
                raise Refused("naps are counted in whole numbers")
            return notice(f"{user.name} had {naps} naps", good=True)
        return notice(told.sentence)

    with GuardedBlocks(title="Naps", analytics_enabled=False) as blocks:
        naps, said = gr.Textbox("", label="Naps", elem_id="naps"), gr.HTML(elem_id="said")
        in_turn(button("Count", "count").click, count, [naps], [said])
    return blocks.queue(api_open=False)


PAGE = Page("/naps", build, role="rater", css="#naps { color: rebeccapurple }")
'''
HTML = {"Accept": "text/html"}


@pytest.fixture
def naps(tmp_path: Path) -> Iterator[Page]:
    """A page in a file of its own, registered."""
    (tmp_path / "naps.py").write_text(TOY)
    spec = importlib.util.spec_from_file_location("naps", tmp_path / "naps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    register(module.PAGE)
    yield module.PAGE
    del PAGES["/naps"]


@pytest.fixture
def web(naps: Page, assistant: Assistant) -> Iterator[TestClient]:
    with TestClient(create_app(assistant), base_url=HERE, follow_redirects=False) as client:
        yield client


def test_our_own_pages_are_found_in_their_folders() -> None:
    assert {page.path: page.role for page in PAGES.values()} == {"/": "", "/operate": "operator"}


def test_a_page_is_served_to_those_it_is_for_and_refused_to_others(web: TestClient, store: Database) -> None:
    headers = {role: token_of(store, role, role) for role in ("chatter", "rater", "operator")}
    for path in ("/naps", "/naps/", "/naps/theme.css", "/naps/gradio_api/queue/data?session_hash=x"):
        assert web.get(path).status_code == 401
        refused = web.get(path, headers=headers["chatter"])
        assert (refused.status_code, refused.json()["error"]) == (
            403,
            "this takes the role rater, and chatter is a chatter",
        )
    assert web.post("/naps/gradio_api/queue/join", json={}, headers=headers["chatter"]).status_code == 403
    assert web.get("/naps/", headers=HTML).headers["location"] == "/login?next=/naps/"
    for role in ("rater", "operator"):
        moved = web.get("/naps", headers=headers[role])
        assert (moved.status_code, moved.headers["location"]) == (308, "/naps/")
        shown = web.get("/naps/", headers=headers[role] | HTML)
        assert (shown.status_code, shown.headers["cache-control"]) == (200, "no-store")
        assert "rebeccapurple" in shown.text
        assert "nightschool" in shown.text  # the script that every page has
        assert web.get("/naps/theme.css", headers=headers[role]).headers.get("cache-control") != "no-store"
        assert web.get("/naps/config", headers=headers[role]).status_code == 404  # of Gradio's routes only ours
    assert web.get("/napsack", headers=headers["chatter"]).status_code == 404  # no page, so nobody's in particular
    for role, status in (("chatter", 403), ("rater", 403), ("operator", 200)):
        assert web.get("/operate/", headers=headers[role]).status_code == status
        assert web.get("/", headers=headers[role] | HTML).status_code == 200


def test_its_events_act_for_who_is_there_and_take_no_files(web: TestClient, store: Database) -> None:
    web.headers.update(token_of(store, "rita", "rater"))
    assert "Rita had 3 naps." in act_on_page(web, "/naps", "count", {"naps": "3"})
    assert "Naps are counted in whole numbers." in act_on_page(web, "/naps", "count", {"naps": "many"})
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file], "fn_index": 0, "session_hash": "abc", "trigger_id": None}
    assert web.post("/naps/gradio_api/queue/join", json=body).status_code == 400


def test_what_cannot_be_a_page_is_refused(naps: Page) -> None:
    with pytest.raises(ValueError, match="a page at /naps already"):
        register(naps)
    for path, role in (("naps", ""), ("/naps/", ""), ("/a/b", ""), ("", ""), ("/", "operator"), ("/naps", "king")):
        with pytest.raises(ValueError, match=r"page|role"):
            Page(path, naps.build, role)
