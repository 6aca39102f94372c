"""A setting is declared once: one more of each kind stands in the command, the API and the page."""

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from feedback.database.database import Database
from feedback.records import settings
from feedback.records.settings import SETTINGS, Setting
from tests.helpers.over_http import act_on_page, assistant, blocks_of, key, loaded, web
from ui.cli.main import main
from ui.operate.layout import SHARE

__all__ = ["assistant", "loaded", "web"]  # fixtures
NAPS = Setting("naps", "Naps a day", "So many naps are taken.", 2, most=9, unit="naps")
BLANKET = Setting("blanket", "Blanket", "Which one.", "wool", choices={"wool": "warm", "silk": "light"})
DREAMS = Setting("dream_share", "Naps with a dream", "The share of naps with a dream, 0 to 1.", 0.25)
TOYS = (NAPS, BLANKET, DREAMS)


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    for each in TOYS:
        settings.register(each)
    yield
    for each in TOYS:
        del SETTINGS[each.name]


def test_the_command_shows_explains_and_changes_it(store: Database, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(store.data)]
    assert main(["set", *data]) == 0
    lines = capsys.readouterr().out
    for each in TOYS:
        assert f"{each.name} = {json.dumps(each.default)}" in lines
        assert each.help in lines
    assert main(["set", "blanket", "silk", *data]) == 0
    assert settings.setting(store, "blanket") == "silk"
    assert main(["set", "naps", "10", *data]) == 2
    assert "naps is a whole number of naps from 0 to 9, not 10" in capsys.readouterr().err


def test_the_api_answers_takes_and_describes_it(web: TestClient, store: Database) -> None:
    assert {name: web.get("/api/settings").json()[name] for name in ("naps", "blanket", "dream_share")} == {
        "naps": 2,
        "blanket": "wool",
        "dream_share": 0.25,
    }
    answer = web.put("/api/settings", json={"naps": 3, "dream_share": 0.5}, headers=key())
    assert (answer.status_code, answer.json()["naps"], answer.json()["blanket"]) == (200, 3, "wool")
    assert web.put("/api/settings", json={"naps": 10}, headers=key()).status_code == 400
    assert web.put("/api/settings", json={"pillow": 1}, headers=key()).status_code == 422
    assert settings.setting(store, "naps") == 3
    schemas = web.get("/openapi.json").json()["components"]["schemas"]
    for each in TOYS:
        assert schemas["Settings"]["properties"][each.name]["description"] == each.help
        assert schemas["SettingsAsked"]["properties"][each.name]["description"] == each.help


def test_the_page_has_a_field_for_it_and_saves_it(web: TestClient, store: Database) -> None:
    shown = {control.elem_id: control for control in blocks_of(web, "/operate").blocks.values()}
    for each in SETTINGS.values():
        if each.name != SHARE:
            control = shown[each.name.replace("_", "-")]
            assert (control.label, control.info) == (each.title, each.help)
    typed = {"naps": "5", "blanket": "silk", "dream-share": "0.75"}
    assert "naps, blanket, dream_share" in act_on_page(web, "/operate", "save_settings", typed)
    assert [settings.setting(store, each.name) for each in TOYS] == [5, "silk", 0.75]
    said = act_on_page(web, "/operate", "save_settings", typed | {"naps": "6", "dream-share": "often"})
    assert "dream_share is a number from 0 to 1" in said
    assert settings.setting(store, "naps") == 5


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'naps' already"):
        settings.register(NAPS)
