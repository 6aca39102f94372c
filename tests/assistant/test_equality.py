"""Real prompts, trained adapters, any company: the engine writes what transformers and PEFT write, token for token.

All in float32. The reference writes one text at a time; the engine writes them together, joined, left, cancelled and
swapped as hypothesis draws it.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from assistant.engine.engine import Engine
from assistant.engine.model_runner import SequenceChunk
from assistant.engine.sampling.params import Sampling
from assistant.engine.scheduling import prefill_budget
from assistant.engine.scheduling.writing import Writing
from assistant.models import base_model, chat_template
from assistant.models.adapter import LoadedAdapter
from feedback.messages import Message
from tests.conftest import SHARED_DATA
from tests.helpers.small_models import Expected, Reference, require_equal
from tests.helpers.trained import LETTER, SAILOR, Trained

NAMES = (None, SAILOR, LETTER)
TOKENS = 12  # of a reply
GREEDY = Sampling(temperature=0, max_tokens=TOKENS)
LONGEST = 200  # tokens of a prompt
MOST_OPEN = 48  # replies asked for at a time


@dataclass
class Bench:
    """The engine, the reference, and both adapters in both."""

    engine: Engine
    reference: Reference
    loaded: dict[str | None, LoadedAdapter | None]
    directories: dict[str, Path]
    tokenizer: Any

    def encode(self, *texts: str) -> list[int]:
        """A conversation in which the two sides take turns."""
        messages = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts)]
        return chat_template.encode_prompt(self.tokenizer, messages, 4000)

    def swap(self, name: str) -> None:
        """Load an adapter once more for whoever comes next, and let the old one go."""
        old = self.loaded[name]
        self.loaded[name] = self.engine.load(self.directories[name])
        assert old is not None
        self.engine.unload(old)


@pytest.fixture(scope="module")
def bench(trained: Trained) -> Iterator[Bench]:
    directories = {name: trained.adapter(name) for name in (SAILOR, LETTER)}
    tokenizer = base_model.load_tokenizer(trained.base)
    engine = Engine(trained.base, "float32", "cpu", tokenizer)
    loaded: dict[str | None, LoadedAdapter | None] = {name: engine.load(each) for name, each in directories.items()}
    yield Bench(engine, Reference(trained.base, directories), loaded | {None: None}, directories, tokenizer)
    engine.close()


Expectations = dict[tuple[int, str | None], Expected]


@dataclass(frozen=True)
class Material:
    """Real prompts to which the base and both adapters write three texts, and these texts by prompt and adapter."""

    prompts: list[list[int]]
    expected: Expectations


def real_prompts(bench: Bench, folder: Path) -> Iterator[list[int]]:
    """Real prompts of mixed lengths, in an order of no meaning."""
    files = sorted(folder.glob("prompts_*.jsonl"))
    if not files:
        pytest.skip(f"there are no prompts_*.jsonl in {folder}")
    texts = [json.loads(line)["turns"][0] for file in files for line in file.read_text().splitlines()]
    random.Random(1).shuffle(texts)
    for text in texts:
        ids = bench.encode(text)
        if len(ids) <= LONGEST:
            yield ids


def material(bench: Bench, folder: Path, count: int) -> Material:
    """So many real prompts; one on which an adapter changes nothing would show nothing, and is passed over."""
    found = Material([], {})
    for ids in real_prompts(bench, folder):
        written = {name: bench.reference.write(ids, name, TOKENS) for name in NAMES}
        if len({tuple(each.token_ids) for each in written.values()}) == len(NAMES):
            found.expected.update({(len(found.prompts), name): each for name, each in written.items()})
            found.prompts.append(ids)
        if len(found.prompts) == count:
            return found
    raise AssertionError(f"the adapters change only {len(found.prompts)} of the prompts, not {count}")


@pytest.fixture(scope="module")
def twenty(bench: Bench) -> Material:
    """Twenty real prompts."""
    return material(bench, SHARED_DATA, 20)


@dataclass(frozen=True)
class Ask:
    """One request of a schedule."""

    prompt: int
    adapter: str | None
    cancelled_after: int | None  # tokens
    swapped_before: bool


@st.composite
def schedules(draw: st.DrawFn, prompts: int) -> list[Ask]:
    """Every prompt with every adapter, in any order; some are cancelled, and some come after a swap."""
    pairs = draw(st.permutations([(at, name) for at in range(prompts) for name in NAMES]))
    cancelled = st.one_of(st.none(), st.none(), st.none(), st.integers(0, TOKENS - 2))
    swapped = st.sampled_from([False] * 9 + [True])
    return [Ask(*pair, draw(cancelled), draw(swapped)) for pair in pairs]


def play(bench: Bench, prompts: list[list[int]], schedule: list[Ask]) -> list[tuple[Ask, Writing, list[Any]]]:
    """Ask as the schedule says, and read all replies. A cancel is also a pause: others go on meanwhile."""
    asked: list[tuple[Ask, Writing, list[Any]]] = []
    for at, ask in enumerate(schedule):
        if ask.swapped_before and ask.adapter is not None:
            bench.swap(ask.adapter)
        writing = bench.engine.submit(prompts[ask.prompt], GREEDY, bench.loaded[ask.adapter])
        tokens: list[Any] = []
        if ask.cancelled_after is not None:
            tokens += islice(writing, ask.cancelled_after)
            writing.cancel()
        asked.append((ask, writing, tokens))
        if at >= MOST_OPEN:
            asked[at - MOST_OPEN][2].extend(asked[at - MOST_OPEN][1])
    for _, writing, tokens in asked:
        tokens += writing
    return asked


def require_reference(bench: Bench, known: Material, played: list[tuple[Ask, Writing, list[Any]]]) -> None:
    """Each reply is its adapter's, whole or up to where it was cancelled, and so are its log-probs."""
    written, wanted = [], []
    for ask, writing, tokens in played:
        ids = [token.id for token in tokens]
        whole = known.expected[ask.prompt, ask.adapter]
        assert (writing.finish == "cancelled") <= (ask.cancelled_after is not None)
        count = len(ids) if writing.finish == "cancelled" else len(whole.token_ids)
        written.append(ids)
        wanted.append(Expected(whole.token_ids[:count], whole.margins[:count]))
        if ids:
            plain = bench.reference.logprobs(known.prompts[ask.prompt], ids, ask.adapter)
            assert [token.logprob for token in tokens] == pytest.approx(plain, abs=1e-4)
    require_equal(written, wanted)


QUICK = settings(
    max_examples=2,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@QUICK
@given(schedule=schedules(20))
def test_any_schedule_of_joins_cancels_and_swaps_gives_the_texts_of_the_reference(
    bench: Bench, twenty: Material, schedule: list[Ask]
) -> None:
    require_reference(bench, twenty, play(bench, twenty.prompts, schedule))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_prompts_in_any_schedule_give_the_texts_of_the_reference(bench: Bench, shared_data: Path) -> None:
    known = material(bench, shared_data, 200)

    @settings(QUICK, derandomize=False, max_examples=3)
    @given(schedule=schedules(200))
    def any_schedule(schedule: list[Ask]) -> None:
        require_reference(bench, known, play(bench, known.prompts, schedule))

    any_schedule()


def ids_of(writing: Writing) -> list[int]:
    return [token.id for token in writing]


@pytest.mark.parametrize("chunk", [1, 5, 33, 1000])
def test_a_prompt_read_in_pieces_of_any_size_beside_others_is_read_the_same(
    bench: Bench, twenty: Material, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, expected = twenty.prompts, twenty.expected
    bench.engine.cache.clear()  # nobody has read them yet
    monkeypatch.setattr(prefill_budget.PrefillBudget, "prompt_tokens", lambda self, growing, reading: chunk)
    by_length = sorted(range(20), key=lambda at: len(prompts[at]))
    chosen = [(at, name) for at in (by_length[::6] if chunk > 9 else by_length[:3]) for name in NAMES]
    asked = [bench.engine.submit(prompts[at], GREEDY, bench.loaded[name]) for at, name in chosen]
    require_equal([ids_of(each) for each in asked], [expected[each] for each in chosen])


@pytest.fixture
def tokens_computed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many tokens the network has been given since."""
    counts: list[int] = []
    forward = bench.engine.network.forward

    def counted(parts: list[SequenceChunk]) -> Any:
        counts.append(sum(len(part.token_ids) for part in parts))
        return forward(parts)

    monkeypatch.setattr(bench.engine.network, "forward", counted)
    return lambda: sum(counts)


@pytest.mark.parametrize("name", [None, SAILOR])
def test_turns_of_a_conversation_and_a_retry_pay_for_what_is_new_and_change_no_text(
    bench: Bench, tokens_computed: Callable[[], int], name: str | None
) -> None:
    bench.engine.cache.clear()
    said = ["Name three fruits that grow in cold countries, and say of each what it tastes like. " * 3]
    read = 0
    for more in ("Which of them is the sweetest?", "And which would you put into a cake?", None):
        ids = bench.encode(*said)
        expected = bench.reference.write(ids, name, TOKENS)
        for _ in range(2):  # asked, and asked once more
            reply = ids_of(bench.engine.submit(ids, GREEDY, bench.loaded[name]))
            require_equal([reply], [expected])
            read += len(ids) + len(reply)
        said += [bench.tokenizer.decode(reply, skip_special_tokens=True), more or ""]
    assert tokens_computed() < 0.6 * read


def test_many_replies_of_one_prompt_read_it_once_and_are_those_it_has_alone(
    bench: Bench, tokens_computed: Callable[[], int]
) -> None:
    ids = bench.encode("Write one sentence about each of the four seasons, and one about the time between them.")
    asked = [
        Sampling(temperature=0.9, seed=seed, max_tokens=TOKENS, repetition_penalty=1 + seed / 10) for seed in range(4)
    ]
    alone = []
    for each in asked:
        bench.engine.cache.clear()
        alone.append(ids_of(bench.engine.submit(ids, each, bench.loaded[SAILOR])))
    bench.engine.cache.clear()
    before = tokens_computed()
    together = [bench.engine.submit(ids, each, bench.loaded[SAILOR]) for each in asked]
    assert [ids_of(each) for each in together] == alone
    assert len({tuple(each) for each in alone}) == 4
    assert tokens_computed() - before < len(ids) + 5 * TOKENS


def test_a_pair_of_two_adapters_shares_no_text(bench: Bench, twenty: Material) -> None:
    prompts, expected = twenty.prompts, twenty.expected
    for at in range(4):
        sides = [bench.engine.submit(prompts[at], GREEDY, bench.loaded[name]) for name in NAMES]
        require_equal([ids_of(each) for each in sides], [expected[at, name] for name in NAMES])


def test_beams_beside_others_are_those_of_transformers(bench: Bench, twenty: Material) -> None:
    prompts, expected = twenty.prompts, twenty.expected
    short = sorted(range(20), key=lambda at: len(prompts[at]))[:3]
    pairs = list(zip(short, NAMES, strict=True))
    wanted = [bench.reference.write(prompts[at], name, 12, num_beams=3).token_ids for at, name in pairs]
    beams = Sampling(temperature=0, beams=3, max_tokens=12)
    beside = [bench.engine.submit(prompts[at], GREEDY, bench.loaded[name]) for at in range(4) for name in NAMES]
    searches = [bench.engine.submit(prompts[at], beams, bench.loaded[name]) for at, name in pairs]
    assert [ids_of(each) for each in searches] == wanted
    require_equal([ids_of(each) for each in beside], [expected[at, name] for at in range(4) for name in NAMES])
