"""Fair shares of rows, places and memory, so that nobody waits for a person who asks for much.

One person may take nearly everything while nobody else is present: the last quarter is for people who hold little.
While others are present, or were a moment ago, one person's replies advance by few rows per step, whatever was begun
before, so that steps stay short. The person who holds least comes first; of several, the one who has waited longest.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from assistant.engine.request import Busy, Who

BESIDE_OTHERS = 4  # rows of one person in a step, while others are present
BESIDE_NEWCOMERS = 1  # the same in a step that prefills for a person with fewer rows: their first token comes next
BESIDE_OTHERS_S = 0.03  # of a step, for prefill while others are present: the next person waits as long
KEYS_A_STEP = 2048  # keys that one person's replies may attend to in a step beside others, on average
NEWCOMERS_FIRST = 4  # extra steps that a reply over this many keys waits while a newcomer is prefilled
PUT_OFF = 32  # steps that a prompt waits for those of people who hold less, before it is read along with them
ABOUT_AS_LITTLE = 2  # times as many unread tokens as the first person's, for others to be read along with them
LATELY_S = 60.0  # how long after a reply its reader counts as present: people read, think and write


def may_take(who: Who, held: int, more: int, taken: int, places: int) -> bool:
    """Whether a person who holds `held` of the `taken` places may have `more`."""
    taken += more
    is_little = held == 0 or held + more <= places // 8
    return taken <= places and (who is None or is_little or taken <= places - places // 4)


def require_places(who: Who, count: int, waiting: Iterable[Who], places: int) -> None:
    """Raise `Busy` unless `count` more requests by a person may wait beside these. One may have half of the places."""
    held = Counter(waiting)
    most = places // 2
    if who is not None and held[who] + count > most:
        raise Busy(f"busy: {held[who]} requests of yours wait already, and one person may have {most}; try again soon")
    if not may_take(who, held[who], count, held.total(), places):
        raise Busy(f"busy, position {held.total() + 1} in the queue: too many requests wait already; try again soon")


class Turns:
    """A budget of keys for each person's replies: attention over a long text costs a step more than the whole model.

    Deficit round robin (Shreedhar and Varghese, 1996): a person with too little for their next token saves it up.
    """

    def __init__(self) -> None:
        self._saved: dict[Who, int] = {}

    def begin(self, most: Mapping[Who, int]) -> None:
        """Begin a step and add to the savings of these people, whose longest text reads this many keys."""
        self._saved = {
            who: min(self._saved.get(who, 0) + KEYS_A_STEP, keys + KEYS_A_STEP * NEWCOMERS_FIRST)
            for who, keys in most.items()
        }

    def take(self, who: Who, keys: int, beside_newcomer: bool) -> bool:
        """Whether a reply may read this many keys now; if so, they are deducted."""
        waits = KEYS_A_STEP * NEWCOMERS_FIRST if beside_newcomer and keys > KEYS_A_STEP else 0
        if self._saved[who] < keys + waits:
            return False
        self._saved[who] -= keys
        return True


class Present:
    """The people who are present, or were recently. For a single thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[Who, float] = {}

    def see(self, people: Iterable[Who]) -> None:
        """Record that these people are present now. The machine's own work (None) is not a person's."""
        now = self._clock()
        self._seen |= {who: now for who in people if who is not None}
        if len(self._seen) > 1:
            self._seen = {who: at for who, at in self._seen.items() if now - at < LATELY_S}

    def is_alone(self, who: Who) -> bool:
        """Whether nobody else is present."""
        return not any(each != who for each in self._seen)
