"""The whole application over a real assistant, for tests that speak HTTP to it.

Fixtures are imported from here by name: a small model in memory is shared by a file, and each test has its own store.
"""

import dataclasses
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio.blocks
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from safetensors.torch import save_file
from starlette.routing import Mount

from assistant.chat.adapter_manager import AdapterManager
from assistant.chat.assistant import Assistant, open_assistant
from assistant.models.adapter import CONFIG, PROOF_TEXTS, WEIGHTS, AdapterCard, LoadedAdapter, Proof, write_card
from assistant.models.base_model import Base, file_sha256
from assistant.models.chat_template import encode_prompt, encode_reply
from feedback.accounts import users
from feedback.database.database import Database, now
from feedback.messages import Message
from feedback.records import adapters
from feedback.records.adapters import Adapter
from ui.app import bound, create_app


class Unmounted:
    """The applications that Gradio makes of a page before it is mounted: three, slow to make and never used."""

    @staticmethod
    def create_app(*_: Any, **__: Any) -> None:
        """None."""


gradio.blocks.App = Unmounted  # what is mounted is made by `gradio.routes`; servers in processes of their own do all

HERE = "http://127.0.0.1"
HELLO = [{"role": "user", "content": "Say hello in one word."}]
GREEDY = {"model": "nightschool", "messages": HELLO, "temperature": 0, "max_tokens": 12}
DRAWN = {"messages": HELLO, "max_tokens": 8, "seed": 7}
LONG = "word " * 20_000 + "x"  # 100,001 characters


@pytest.fixture(scope="module")
def loaded(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    """A small model in memory, exact, once for a file; each test has a store of its own."""
    store = Database(tmp_path_factory.mktemp("loaded"))
    opened = open_assistant(store, tiny.name, dtype="float32")
    yield opened
    opened.close()
    store.close()


@pytest.fixture(scope="module")
def loaded_talking(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    """The same, and in `make soak` the embedded model, where what is written is told token by token."""
    store = Database(tmp_path_factory.mktemp("talking"))
    opened = open_assistant(store, model, dtype="float32")
    yield opened
    opened.close()
    store.close()


def with_store(loaded: Assistant, store: Database) -> Assistant:
    """The same model over another store."""
    return dataclasses.replace(loaded, store=store, adapters=AdapterManager(store, loaded.engine))


@pytest.fixture
def assistant(loaded: Assistant, store: Database) -> Assistant:
    return with_store(loaded, store)


@pytest.fixture
def web(assistant: Assistant) -> Iterator[TestClient]:
    """A local owner's client."""
    with TestClient(create_app(assistant), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def talking(loaded_talking: Assistant, store: Database) -> Iterator[TestClient]:
    """A client of that."""
    with TestClient(create_app(with_store(loaded_talking, store)), base_url=HERE) as client:
        yield client


@contextmanager
def answering(app: Any) -> Iterator[str]:
    """A real server of an application; where it answers."""
    listening = bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical", proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


def token_of(store: Database, name: str, role: str) -> dict[str, str]:
    """Headers of a new person with a token."""
    user = users.add_user(store, name, role, "a hash that no password has")
    return {"Authorization": f"Bearer {users.add_token(store, user, 'test')}"}


def rows(store: Database) -> dict[str, int]:
    """How many rows every table has."""
    tables = store.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return {each["name"]: store.rows(f"SELECT count(*) AS n FROM {each['name']}")[0]["n"] for each in tables}


def make_adapter(assistant: Assistant, name: str, base_sha256: str | None = None) -> str:
    """An announced adapter that differs from the base, with a proof that this very server would give."""
    engine, folder = assistant.engine, adapters.directory(assistant.store, name)
    folder.mkdir(parents=True)
    layer = "model.layers.0.self_attn.q_proj"
    width_out, width_in = engine.network.shapes[layer]
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, width_in, generator=generator), torch.randn(width_out, 4, generator=generator) / 4
    stem = f"base_model.model.{layer}"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, "r": 4, "bias": "none"}))
    weights, base = file_sha256(folder / WEIGHTS), base_sha256 or assistant.base.sha256
    card = AdapterCard(name, assistant.base.name, base, None, "test", weights, "", {}, {}, 0, {})
    proofs, own = [], LoadedAdapter(name, card, engine.network.add({layer: (a, b)}))
    for said, replied in PROOF_TEXTS[:1]:
        prompt_ids = encode_prompt(assistant.tokenizer, [Message("user", said)], 500)
        reply_ids = encode_reply(assistant.tokenizer, replied, next(iter(engine.end_ids)))
        read = [engine.score(prompt_ids, reply_ids, each) for each in (own, None)]
        proofs.append(Proof(prompt_ids, reply_ids, *([token.logprob for token in each] for each in read)))
    engine.unload(own)
    write_card(folder, dataclasses.replace(card, proof=proofs))
    adapters.add_adapter(
        assistant.store, Adapter(name, None, None, "test", base, weights, "candidate", "made by hand", now())
    )
    return name


def events(answer: Any) -> list[Any]:
    """The JSON of each server-sent event; [DONE] as it is."""
    lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    data = [line.removeprefix("data: ") for line in lines]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def blocks_of(web: TestClient, place: str) -> Any:
    """What is mounted at a page's place, which does not end in a slash: its Gradio blocks."""
    app: Any = web.app
    return next(each.app.blocks for each in app.routes if isinstance(each, Mount) and each.path == place)


def act_on_page(web: TestClient, place: str, handler: str, typed: dict[str, Any]) -> str:
    """All that the server says to an event of a page; `typed` is what stands in controls, by their `elem_id`."""
    function = next(each for each in blocks_of(web, place).fns.values() if each.fn and each.name == handler)
    data = [typed.get(control.elem_id, control.value) for control in function.inputs]
    trigger = next((each for each, _ in function.targets if each is not None), None)
    session = secrets.token_hex(6)
    body = {"data": data, "fn_index": function._id, "session_hash": session, "trigger_id": trigger}
    joined = web.post(f"{place}/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    return web.get(f"{place}/gradio_api/queue/data?session_hash={session}").text
