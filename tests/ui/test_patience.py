"""Whoever floods the server with what is refused is answered at a pace, and nobody else is."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from assistant.chat.assistant import Assistant
from feedback.database.database import Database
from tests.helpers.over_http import HERE, assistant, loaded, token_of
from ui.accounts.patience import A_SECOND, LONGEST_S, REFUSALS, REMEMBERED, Pace, Patience
from ui.app import create_app

__all__ = ["assistant", "loaded"]  # fixtures
FLOOD = A_SECOND + 1  # requests at once, which take a second at a pace
ADDRESS = "192.0.2.1"


class Crowd:
    """Requests to one application in one event loop."""

    def __init__(self, assistant: Assistant) -> None:
        self.app = create_app(assistant)

    async def asked(self, path: str, headers: dict[str, str] | None = None, address: str = ADDRESS) -> int:
        """The status of an answer."""
        transport = httpx.ASGITransport(self.app, client=(address, 5000))
        async with httpx.AsyncClient(transport=transport, base_url=HERE, headers=headers, timeout=60) as web:
            return (await web.get(path)).status_code

    async def refused(self, **who: Any) -> None:
        """Be refused as often as is borne."""
        for _ in range(REFUSALS):
            assert await self.asked("/api/nothing", **who) in (401, 404)

    async def flood(self, **who: Any) -> tuple[set[int], bool]:
        """The statuses of many answers at once, and whether they came at a pace."""
        begun = time.monotonic()
        statuses = set(await asyncio.gather(*(self.asked("/api/me", **who) for _ in range(FLOOD))))
        return statuses, time.monotonic() - begun >= (FLOOD - 1) / A_SECOND


def test_who_was_refused_often_is_answered_at_a_pace_and_nobody_else_is(assistant: Assistant, store: Database) -> None:
    crowd = Crowd(assistant)
    ada, bob = (token_of(store, name, "chatter") for name in ("Ada", "Bob"))

    async def act() -> None:
        assert await crowd.flood(headers=ada) == ({200}, False)  # much at once is no fault
        await crowd.refused(headers=ada)
        flood = asyncio.ensure_future(crowd.flood(headers=ada))
        await asyncio.sleep(0)
        assert await crowd.flood(headers=bob) == ({200}, False)
        assert await crowd.flood() == ({401}, False)
        assert await flood == ({200}, True)
        begun = time.monotonic()
        assert await crowd.asked("/healthz", headers=ada) == 200
        assert time.monotonic() - begun < 1 / A_SECOND

    asyncio.run(act())


def test_who_is_not_known_is_counted_by_address_and_who_is_known_there_is_not_held_up(
    assistant: Assistant, store: Database
) -> None:
    crowd = Crowd(assistant)
    ada = token_of(store, "Ada", "chatter")

    async def act() -> None:
        await crowd.refused(headers={"Authorization": "Bearer guess"})
        flood = asyncio.ensure_future(crowd.flood(headers={"Authorization": "Bearer another"}))
        await asyncio.sleep(0)
        assert await crowd.flood(headers=ada) == ({200}, False)
        assert await crowd.flood(address="192.0.2.2") == ({401}, False)
        assert await flood == ({401}, True)

    asyncio.run(act())


def test_who_would_wait_too_long_is_refused_at_once_and_what_is_over_is_forgotten() -> None:
    async def act() -> None:
        pace = Pace()
        some = [asyncio.ensure_future(pace.wait("somebody")) for _ in range(int(LONGEST_S * A_SECOND) + 1)]
        await asyncio.sleep(0)
        begun = time.monotonic()
        assert not await pace.wait("somebody")
        for number in range(2 * REMEMBERED):
            assert await pace.wait(f"another {number}")
            await asyncio.sleep(0.0001)
        assert time.monotonic() - begun < LONGEST_S
        assert len(pace._due) <= REMEMBERED + 1
        assert "somebody" in pace._due  # whose turn has not come
        for each in some:
            each.cancel()

    asyncio.run(act())


@pytest.mark.parametrize("status", [200, 303, 500])
def test_what_is_no_refusal_is_not_counted(status: int) -> None:
    async def ignored(_: Any) -> None:
        pass

    async def act() -> None:
        patience = Patience()
        for _ in range(2 * REFUSALS):
            await patience.counting("somebody", ignored)({"type": "http.response.start", "status": status})
        begun = time.monotonic()
        assert await asyncio.gather(*(patience.lasts("somebody") for _ in range(FLOOD))) == [True] * FLOOD
        assert time.monotonic() - begun < (FLOOD - 1) / A_SECOND

    asyncio.run(act())
