"""Twenty minutes of everything at once: a login flood, files in events, long histories, one greedy account, and votes.

What honest people feel is measured beside the same without: `make soak`; NIGHTSCHOOL_SIEGE_MINUTES makes it shorter.
"""

import asyncio
import json
import multiprocessing
import os
import random
import secrets
import sqlite3
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from feedback.accounts import users
from feedback.database.database import Database
from tests.conftest import two_replies
from tests.helpers.browser import Server, serving

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("NIGHTSCHOOL_SIEGE_MINUTES", "20"))
CALM_S = min(90.0, MINUTES * 30)
VOTERS = 20
FILE_SECRET = "what only the server's own files hold"
QUESTION = [{"role": "user", "content": "Name one colour."}]


@dataclass
class Felt:
    """What honest people felt: seconds for each vote and each first token, and which votes were acknowledged."""

    votes: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


# Honest people


def votes(url: str, token: str, replies: tuple[str, str], until: float, felt: Felt) -> None:
    """One person who rates a reply every few seconds."""
    chance = random.Random(token)
    with httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {token}"}) as web:
        while time.monotonic() < until:
            body = {"reply": chance.choice(replies), "value": chance.choice((1, -1))}
            begun = time.monotonic()
            answer = web.post("/api/votes", json=body, headers={"Idempotency-Key": secrets.token_hex(8)})
            felt.votes.append(time.monotonic() - begun)
            if answer.status_code == 200:
                felt.kept.append(answer.json()["id"])
            else:
                felt.refused.append(f"vote {answer.status_code} {answer.text[:200]}")
            time.sleep(chance.uniform(2, 6))


def chats(url: str, token: str, until: float, felt: Felt) -> None:
    """One person who asks something short every few seconds."""
    with httpx.Client(base_url=url, timeout=120, headers={"Authorization": f"Bearer {token}"}) as web:
        while time.monotonic() < until:
            body = {"model": "nightschool", "messages": QUESTION, "max_tokens": 8, "stream": True}
            begun = time.monotonic()
            with web.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code != 200:
                    felt.refused.append(f"chat {answer.status_code} {answer.read().decode()[:200]}")
                for line in answer.iter_lines():
                    if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        felt.first_tokens.append(time.monotonic() - begun)
                        break
            time.sleep(2)


def honest(server: Server, tokens: dict[str, str], rated: dict[str, tuple[str, str]], seconds: float) -> Felt:
    """All honest people for so long."""
    felt, until = Felt(), time.monotonic() + seconds

    def lived(act: Callable[..., None], *arguments: object) -> None:
        """Whoever's connection breaks is a failure, too, and not one voter less."""
        try:
            act(server.url, *arguments, until, felt)
        except httpx.HTTPError as error:
            felt.refused.append(f"{act.__name__} {error!r}")

    threads = [threading.Thread(target=lived, args=(votes, tokens[name], replies)) for name, replies in rated.items()]
    threads.append(threading.Thread(target=lived, args=(chats, tokens["honest"])))
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return felt


# Attackers; their processor time is their own, so they run behind everything else


def attack(url: str, tokens: dict[str, str], seconds: float, file: str, told: "multiprocessing.Queue[dict]") -> None:
    """Everything at once, for so long; tells how often what was answered."""
    os.nice(19)
    told.put(asyncio.run(_attack(url, tokens, time.monotonic() + seconds, file)))


async def _attack(url: str, tokens: dict[str, str], until: float, file: str) -> dict[str, int]:
    counts: dict[str, int] = {}

    async def again(what: str, act: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], pause_s: float) -> None:
        token = tokens.get(what)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(base_url=url, timeout=30, headers=headers) as web:
            while time.monotonic() < until:
                try:
                    answer = await act(web)
                    name = f"{what} {answer.status_code}"
                    if FILE_SECRET in answer.text:
                        name = "served"
                except httpx.HTTPError as error:
                    name = f"{what} {type(error).__name__}"
                counts[name] = counts.get(name, 0) + 1
                await asyncio.sleep(pause_s)

    flood = [again("login", guess, 0.1) for _ in range(80)]
    filed = [again("files", lambda web: send_file(web, file), 0.05) for _ in range(4)]
    long = [again("long", send_history, 0.1) for _ in range(4)]
    greedy = [again("greedy", ask_much, 0.1) for _ in range(20)]
    await asyncio.gather(*flood, *filed, *long, *greedy)
    return counts


async def guess(web: httpx.AsyncClient) -> httpx.Response:
    return await web.post("/login", data={"name": secrets.token_hex(6), "password": secrets.token_hex(8)})


async def send_file(web: httpx.AsyncClient, file: str) -> httpx.Response:
    path = random.choice((file, "/dev/zero", "/proc/self/cwd/data/nightschool.db"))
    named = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = {"data": [named, named], "fn_index": random.randrange(50), "session_hash": secrets.token_hex(5)}
    await web.post("/gradio_api/queue/join", json=body)
    return await web.get(f"/gradio_api/file={path}")


async def send_history(web: httpx.AsyncClient) -> httpx.Response:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"word {n} " * 8} for n in range(1501)]
    return await web.post("/v1/chat/completions", json={"messages": turns, "max_tokens": 4}, timeout=3)


async def ask_much(web: httpx.AsyncClient) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Tell me a long story."}], "n": 8, "max_tokens": 400}
    return await web.post("/v1/chat/completions", json=body)


# The siege


@pytest.fixture
def people_in(tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, tuple[str, str]]]:
    """A data folder; everybody's token; and which replies each voter rates."""
    data = tmp_path / "data"
    store = Database(data)
    tokens, rated = {}, {}
    names = [f"voter{n}" for n in range(VOTERS)] + ["honest", "greedy", "long", "files", "boss"]
    for name in names:
        user = users.add_user(store, name, "operator" if name == "boss" else "chatter", "no password has this hash")
        users.set_consent(store, user, True)
        tokens[name] = users.add_token(store, user, "siege")
        if name.startswith("voter"):
            _, left, right = two_replies(store, user, f"hello from {name}")
            rated[name] = (left, right)
    store.close()
    return data, tokens, rated


@pytest.mark.timeout(3600)
def test_honest_people_hardly_notice_a_siege(
    people_in: tuple[Path, dict[str, str], dict[str, tuple[str, str]]], tmp_path: Path
) -> None:
    data, tokens, rated = people_in
    file, cache = tmp_path / "private.txt", tmp_path / "gradio"
    file.write_text(FILE_SECRET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        with serving(data) as server:
            honest(server, tokens, rated, 20)  # everything is read once
            calm = honest(server, tokens, rated, CALM_S)
            spawn = multiprocessing.get_context("spawn")
            told = spawn.Queue()
            seconds = MINUTES * 60
            attackers = spawn.Process(target=attack, args=(server.url, tokens, seconds + 5, str(file), told))
            attackers.start()
            time.sleep(5)
            siege = honest(server, tokens, rated, seconds - 5)
            counts = told.get(timeout=120)
            attackers.join()
            after = honest(server, tokens, rated, 20)
            health = httpx.get(f"{server.url}healthz", timeout=10).status_code
    figures = {
        "minutes": MINUTES,
        "votes": len(siege.votes),
        "vote_p95_ms": round(p95(siege.votes) * 1000),
        "vote_p95_calm_ms": round(p95(calm.votes) * 1000),
        "first_token_p95_ms": round(p95(siege.first_tokens) * 1000),
        "first_token_p95_calm_ms": round(p95(calm.first_tokens) * 1000),
        "first_token_median_ms": round(statistics.median(siege.first_tokens) * 1000),
        "first_token_median_calm_ms": round(statistics.median(calm.first_tokens) * 1000),
        "answers": dict(sorted(counts.items())),
    }
    print(json.dumps(figures))
    with sqlite3.connect(data / "nightschool.db") as ledger:
        in_ledger = {row[0] for row in ledger.execute("SELECT id FROM votes")}
        assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert health == 200
    for felt in (calm, siege, after):
        assert felt.refused == []
        assert set(felt.kept) <= in_ledger
    assert "served" not in counts
    assert [each for each in cache.rglob("*") if each.is_file()] == []
    assert figures["vote_p95_ms"] < 500, figures
    assert figures["first_token_p95_ms"] <= 3 * figures["first_token_p95_calm_ms"], figures
