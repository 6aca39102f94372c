"""Adapters swapped under thirty-two streams: no error, and each reply is by the one adapter on its record."""

import itertools
import statistics
import threading
import time
from dataclasses import dataclass, field

import pytest

from assistant.chat.assistant import Assistant
from assistant.chat.chat import add_user_message, start_reply
from assistant.engine.sampling.params import Sampling
from assistant.models import chat_template
from assistant.models.base_model import EMBEDDED
from feedback.accounts import users
from feedback.chats import conversations
from feedback.messages import Message
from feedback.records import adapters
from tests.helpers.small_models import Expected, Reference, require_equal
from tests.helpers.trained import ASKED, LETTER, SAILOR

STREAMS = 32
TOKENS = 10
GREEDY = Sampling(temperature=0, max_tokens=TOKENS)
NAMES = (SAILOR, LETTER, None)


@dataclass
class Stream:
    """One who asks, again and again."""

    asked: list[tuple[str, str | None, list[int]]] = field(default_factory=list)  # question, adapter, reply
    intervals: list[float] = field(default_factory=list)  # seconds between two tokens


@dataclass
class Crowd:
    """Streams in threads of their own, until they are told to stop."""

    streams: list[Stream]
    failures: list[BaseException] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def replies(self) -> int:
        """How many have been written."""
        return sum(len(each.asked) for each in self.streams)

    def wait_for(self, more: int) -> None:
        """Until so many more replies are written."""
        goal = self.replies + more
        while self.replies < goal and not self.failures:
            time.sleep(0.02)


def chat(assistant: Assistant, question: str, stream: Stream) -> None:
    """Ask as a person does, and note what the record says."""
    owner = users.local_owner(assistant.store)
    reply = start_reply(assistant, owner, add_user_message(assistant, owner, None, None, question), GREEDY)
    *_, text = reply
    assert conversations.node(assistant.store, reply.id).content == text
    recorded = conversations.provenance(assistant.store, reply.id)
    assert text == chat_template.decode(assistant.tokenizer, recorded.token_ids)
    stream.asked.append((question, recorded.adapter, list(recorded.token_ids)))


def listen(assistant: Assistant, question: str, stream: Stream) -> None:
    """Ask the engine itself, and note when each token comes."""
    loaded = assistant.adapters.current()
    ids = chat_template.encode_prompt(assistant.tokenizer, [Message("user", question)], 1000)
    writing = assistant.engine.submit(ids, GREEDY, loaded)
    reply: list[int] = []
    last = None
    while (tokens := writing.take()) is not None:
        now = time.perf_counter()
        if last is not None:
            stream.intervals.append(now - last)
        last = now
        reply += [token.id for token in tokens]
    stream.asked.append((question, loaded.id if loaded else None, reply))


def begin(assistant: Assistant, ask: object) -> tuple[Crowd, list[threading.Thread]]:
    """Thirty-two threads that ask by `ask` until the crowd is over, and once more then."""
    crowd = Crowd([Stream() for _ in range(STREAMS)])

    def go_on(number: int) -> None:
        try:
            for turn in itertools.count(number):
                over = crowd.over.is_set()
                ask(assistant, ASKED[turn % len(ASKED)], crowd.streams[number])  # type: ignore[operator]
                if over:
                    return
        except BaseException as error:
            crowd.failures.append(error)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(STREAMS)]
    for each in threads:
        each.start()
    return crowd, threads


def swap(assistant: Assistant, crowd: Crowd, times: int) -> None:
    """Promote one after another; between two, some replies finish and others begin."""
    for at in range(times):
        assistant.adapters.promote(None, NAMES[at % len(NAMES)], "a swap")
        crowd.wait_for(STREAMS // 8)


def end(crowd: Crowd, threads: list[threading.Thread]) -> None:
    crowd.over.set()
    for each in threads:
        each.join()


def require_one_author_each(assistant: Assistant, reference: Reference, crowd: Crowd) -> None:
    """No errors; each reply is what the recorded adapter writes by itself, and no other would have."""
    assert crowd.failures == []
    expected: dict[tuple[str, str | None], Expected] = {}
    prompts = [chat_template.encode_prompt(assistant.tokenizer, [Message("user", each)], 1000) for each in ASKED]
    for name in NAMES:
        written = reference.write_each(prompts, name, TOKENS)
        expected.update({(question, name): each for question, each in zip(ASKED, written, strict=True)})
    for question in ASKED:
        assert len({tuple(expected[question, name].token_ids) for name in NAMES}) == len(NAMES), question
    asked = [each for stream in crowd.streams for each in stream.asked]
    assert {name for _, name, _ in asked} == set(NAMES)
    require_equal([reply for _, _, reply in asked], [expected[question, name] for question, name, _ in asked])


def reference_of(assistant: Assistant) -> Reference:
    directories = {name: adapters.directory(assistant.store, name) for name in (SAILOR, LETTER)}
    return Reference(assistant.base, directories)


@pytest.mark.timeout(1200)
def test_each_reply_of_thirty_two_chats_is_by_the_adapter_on_record_however_often_it_is_swapped(
    assistant: Assistant,
) -> None:
    crowd, threads = begin(assistant, chat)
    swap(assistant, crowd, 20 if assistant.base.name == EMBEDDED else 9)
    end(crowd, threads)
    require_one_author_each(assistant, reference_of(assistant), crowd)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_swaps_under_thirty_two_streams_hardly_delay_a_token(assistant: Assistant) -> None:
    calm, threads = begin(assistant, listen)
    calm.wait_for(20 * STREAMS)
    end(calm, threads)
    crowd, threads = begin(assistant, listen)
    swap(assistant, crowd, 200)
    end(crowd, threads)
    require_one_author_each(assistant, reference_of(assistant), crowd)
    without, during = p99(calm), p99(crowd)
    print(f"p99 of a token's interval: {1000 * without:.0f} ms, and {1000 * during:.0f} ms during swaps")
    assert during <= 1.5 * without


def p99(crowd: Crowd) -> float:
    """Of the seconds between two tokens of a reply, over all streams."""
    return statistics.quantiles([each for stream in crowd.streams for each in stream.intervals], n=100)[-1]
