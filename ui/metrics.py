"""Metrics for Prometheus, read when they are asked for, and the health check."""

from collections import Counter
from collections.abc import Iterator

from fastapi import APIRouter, Depends
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from assistant.chat.assistant import Assistant
from assistant.engine.request import Ending
from feedback.accounts import users
from feedback.errors import Refused
from feedback.kinds import tally
from feedback.raters import account
from feedback.records import decisions, nights
from feedback.records.adapters import BASE
from feedback.upkeep import health
from ui.accounts.auth import operator
from ui.accounts.dependencies import TheAssistant

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(tags=["operating"])


class Numbers:
    """A collector of prometheus-client for the metrics of an assistant."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant

    def collect(self) -> Iterator[Metric]:
        """Every metric with its current value."""
        store, engine = self.assistant.store, self.assistant.engine
        said = CounterMetricFamily("nightschool_feedback", "Rows of feedback, by kind.", labels=["kind"])
        for kind, count in tally.counts(store).items():
            said.add_metric([kind], count)
        ran = GaugeMetricFamily("nightschool_nights", "Nights, by state.", labels=["state"])
        for state, count in Counter(night.state for night in nights.nights(store, limit=10_000)).items():
            ran.add_metric([state], count)
        serving = GaugeMetricFamily("nightschool_serving", "1 for the adapter that answers.", labels=["adapter"])
        serving.add_metric([self.assistant.adapters.serving() or BASE], 1)
        decided = CounterMetricFamily(
            "nightschool_decisions",
            "Decisions about adapters, by what decided and what came of it.",
            labels=["door", "outcome"],
        )
        for (door, outcome), count in decisions.counts(store).items():
            decided.add_metric([door, outcome], count)
        yield from (said, ran, serving, decided)
        told = "Expected number of false promotions in the last 365 days; nightschool_risk is how many may be."
        yield GaugeMetricFamily("nightschool_risk_spent", told, value=decisions.spent(store))
        yield GaugeMetricFamily("nightschool_risk", "False promotions a year that may be.", value=account.risk(store))
        yield GaugeMetricFamily("nightschool_chats_active", "Replies being written.", value=engine.active)
        yield GaugeMetricFamily("nightschool_chats_waiting", "Requests that wait for a place.", value=engine.waiting)
        yield CounterMetricFamily("nightschool_tokens_written", "Tokens since the start.", value=engine.tokens_written)


def registry(assistant: Assistant) -> CollectorRegistry:
    """A metrics registry for one server."""
    numbers = CollectorRegistry()
    numbers.register(Numbers(assistant))
    numbers.register(assistant.first_token_waits)
    return numbers


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[Depends(operator)])
def metrics(request: Request) -> Response:
    """Numbers for Prometheus. Takes the role operator: give Prometheus a token."""
    return Response(generate_latest(request.app.state.numbers), media_type=PROMETHEUS)


@router.get("/healthz")
def healthz(assistant: TheAssistant) -> JSONResponse:
    """200 while messages can be answered and kept, else 503 with the reason. For everybody."""
    wrong = trouble(assistant)
    return JSONResponse({"error": wrong}, 503) if wrong else JSONResponse({"status": "well"})


def trouble(assistant: Assistant) -> str | None:
    """Why no message can be answered or kept now, if so."""
    if assistant.writing.is_closed:
        return str(Ending())
    if not assistant.engine.alive:
        return "the engine has stopped"
    if health.is_full(assistant.store):
        return health.disk(assistant.store).words
    try:
        users.has_accounts(assistant.store)
    except Refused as error:
        return str(error)
    return None
