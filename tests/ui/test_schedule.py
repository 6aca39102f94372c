"""When nights start: each time that is due gives one night or one recorded skip, whatever clocks and servers do.

The clock is set by hand and a night is a row that ends at once, except where it says that a process is real.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feedback.accounts import users
from feedback.accounts.users import User
from feedback.database.database import Database
from feedback.errors import Conflict, Refused
from feedback.kinds.comparison import compare
from feedback.kinds.correction import correct
from feedback.kinds.critique import critique
from feedback.kinds.label import label
from feedback.kinds.ranking import rank
from feedback.kinds.vote import vote
from feedback.records import nights
from feedback.records.nights import Night
from feedback.upkeep import schedules
from tests.conftest import REPOSITORY, two_replies
from tests.helpers import commands
from ui.schedule.crontab import next_times, weekdays
from ui.schedule.schedule import Schedule, change, check

MONDAY = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
TUESDAY_AT_3 = "2026-03-03T03:00:00+00:00"
DAILY = "0 3 * * *"


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def __call__(self) -> datetime:
        return self.moment

    def text(self) -> str:
        return self.moment.isoformat(timespec="milliseconds")

    def set(self, moment: str) -> None:
        self.moment = datetime.fromisoformat(moment).replace(tzinfo=UTC)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time for the schedule and for all that is written: noon of Monday, 2 March 2026."""
    made = Clock(MONDAY)
    for module in (schedules, nights, users):
        monkeypatch.setattr(module, "now", made.text)
    for kind in ("vote", "comparison", "ranking", "correction", "label"):
        monkeypatch.setattr(f"feedback.kinds.{kind}.now", made.text)
    return made


@pytest.fixture
def said(store: Database, consenting: User, clock: Clock) -> Callable[[int], None]:
    """Says so many things; one has been said already."""
    _, reply, _ = two_replies(store, consenting)

    def say(pieces: int = 1) -> None:
        for _ in range(pieces):
            vote(store, consenting, reply, 1)

    say()
    return say


def ends(state: str) -> Callable[[Database, str], Night]:
    """Starts nights that have ended at once."""

    def start(store: Database, model: str) -> Night:
        night = nights.start_night(store, "auto", {}, pid=0)
        nights.end_night(store, night, state, "as the test says")
        return nights.night(store, night)

    return start


def ticking(store: Database, clock: Clock, start: Callable[[Database, str], Night] | None = None) -> Schedule:
    return Schedule(store, "embedded", clock, start or ends("done"))


def taken(store: Database) -> list[tuple[str, str]]:
    """What was due and what became of it, oldest first."""
    return [(each.due, each.outcome) for each in reversed(schedules.occurrences(store))]


def last(store: Database) -> schedules.Occurrence:
    return schedules.occurrences(store, 1)[0]


@contextmanager
def night_process(*options: str) -> Iterator[int]:
    """A process that can only be told from a night by what it does."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "training.night", *options])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def dies(store: Database, model: str) -> Night:
    """A server that ends between its claim and the night."""
    raise KeyboardInterrupt


def dies_ticking(store: Database, clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt):
        ticking(store, clock, dies).tick()
    assert [each.night for each in schedules.unsettled(store)] == [None]


# By the clock


def test_a_time_that_has_come_starts_one_night_however_often_one_looks(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for moment in ("2026-03-03 02:59:59", "2026-03-03 03:00:01", "2026-03-03 03:00:04", "2026-03-03 23:00"):
        clock.set(moment)
        schedule.tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]
    assert (last(store).reason, last(store).night) == ("on time", 1)


def test_every_day_has_its_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for day in range(3, 8):
        clock.set(f"2026-03-0{day} 03:00:02")
        schedule.tick()
        said()
    assert [due[8:10] for due, outcome in taken(store) if outcome == "started"] == ["03", "04", "05", "06", "07"]


def test_without_a_schedule_or_with_one_that_is_off_nothing_is_due(store, clock, said):
    schedule = ticking(store, clock)
    schedule.tick()
    schedules.set_schedule(store, None, DAILY, "UTC", False, every_new=1)
    clock.set("2026-03-03 03:00:01")
    schedule.tick()
    schedules.set_schedule(store, None, DAILY, "UTC", True)  # and nothing is made up for
    schedule.tick()
    assert (taken(store), nights.nights(store)) == ([], [])


def test_a_missed_hour_is_made_up_for_once_within_its_grace(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True, grace_minutes=60)
    clock.set("2026-03-03 03:59")
    ticking(store, clock).tick()
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]
    assert last(store).reason == "made up for, 59 min late"


def test_a_missed_hour_beyond_its_grace_is_one_recorded_skip(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True, grace_minutes=60)
    clock.set("2026-03-03 04:01")
    ticking(store, clock).tick()
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]
    assert last(store).reason == "missed: seen 61 min late, and made up for within 60 min"
    assert nights.nights(store) == []


def test_a_server_that_was_away_for_days_records_the_newest_and_how_many_before_it(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-09 12:00")
    ticking(store, clock).tick()
    assert taken(store) == [("2026-03-09T03:00:00+00:00", "skipped")]
    assert last(store).reason.endswith("; 6 earlier missed too")


def test_of_several_missed_times_the_newest_is_made_up_for(store, clock, said):
    schedules.set_schedule(store, None, "*/10 * * * *", "UTC", True)
    clock.set("2026-03-02 12:45")
    ticking(store, clock).tick()
    assert taken(store) == [("2026-03-02T12:40:00+00:00", "started")]
    assert last(store).reason == "made up for, 5 min late; 3 earlier missed too"


def test_no_grace_still_leaves_the_minute_itself(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True, grace_minutes=0)
    schedule = ticking(store, clock)
    clock.set("2026-03-03 03:00:50")
    schedule.tick()
    said()
    clock.set("2026-03-04 03:01:10")
    schedule.tick()
    assert [outcome for _, outcome in taken(store)] == ["started", "skipped"]


def test_a_restart_neither_repeats_nor_loses_a_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock).tick()
    said()
    clock.set("2026-03-03 03:00:05")
    reopened = Database(store.data)
    ticking(reopened, clock).tick()
    clock.set("2026-03-04 03:20")
    ticking(reopened, clock).tick()
    reopened.close()
    assert taken(store) == [(TUESDAY_AT_3, "started"), ("2026-03-04T03:00:00+00:00", "started")]


def test_a_laptop_that_slept_starts_one_night_when_it_wakes(store, clock, said):
    schedules.set_schedule(store, None, "0 * * * *", "UTC", True)
    schedule = ticking(store, clock)
    schedule.tick()
    clock.set("2026-03-02 20:10")
    schedule.tick()
    schedule.tick()
    assert taken(store) == [("2026-03-02T20:00:00+00:00", "started")]


# Changes of clocks


def berlin(store: Database, clock: Clock, cron: str, begin: str, hours: int) -> list[str]:
    """Look every ten minutes; what was due."""
    clock.set(begin)
    schedules.set_schedule(store, None, cron, "Europe/Berlin", True)
    schedule = ticking(store, clock)
    for _ in range(hours * 6):
        clock.moment += timedelta(minutes=10)
        schedule.tick()
    return [due for due, _ in taken(store)]


def test_a_local_time_that_spring_skips_gives_one_night_at_the_change(store, clock, said):
    # Berlin's clocks go from 2 to 3 on 29 March 2026, at 1 in UTC: half past two does not exist
    assert berlin(store, clock, "30 2 * * *", "2026-03-28 12:00", 20) == ["2026-03-29T01:00:00+00:00"]
    assert [outcome for _, outcome in taken(store)] == ["started"]


def test_a_local_time_that_autumn_brings_twice_gives_one_night(store, clock, said):
    # Berlin's clocks go from 3 to 2 on 25 October 2026, at 1 in UTC: half past two comes at 0:30 and at 1:30
    assert berlin(store, clock, "30 2 * * *", "2026-10-24 12:00", 20) == ["2026-10-25T00:30:00+00:00"]
    assert [outcome for _, outcome in taken(store)] == ["started"]


def test_half_hours_across_spring_are_due_once_each(store, clock, said):
    due = berlin(store, clock, "*/30 * * * *", "2026-03-29 00:10", 2)
    assert [each[11:16] for each in due] == ["00:30", "01:00", "01:30", "02:00"]


def test_half_hours_across_autumn_are_due_once_on_the_wall(store, clock, said):
    due = berlin(store, clock, "*/30 * * * *", "2026-10-24 23:40", 3)
    assert [each[11:16] for each in due] == ["00:00", "00:30", "02:00", "02:30"]


def test_a_night_after_a_change_of_clocks_keeps_its_hour(store, clock, said):
    before = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
    times = next_times("0 5 * * *", "Europe/Berlin", 2, after=before)
    assert [f"{each:%d %H:%M %z}" for each in times] == ["29 05:00 +0200", "30 05:00 +0200"]
    autumn = next_times("30 2 * * *", "Europe/Berlin", 2, after=datetime(2026, 10, 24, 12, 0, tzinfo=UTC))
    assert [f"{each:%d %H:%M %z}" for each in autumn] == ["25 02:30 +0200", "26 02:30 +0100"]


def test_a_clock_that_is_set_back_repeats_no_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for moment in ("2026-03-03 03:00:01", "2026-03-03 02:00", "2026-03-03 03:00:01", "2026-03-03 03:30"):
        clock.set(moment)
        schedule.tick()
        said()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


def test_a_clock_that_jumps_forth_and_back_leaves_one_record(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for moment in ("2026-03-03 09:00", "2026-03-03 02:00", "2026-03-03 03:00:01"):
        clock.set(moment)
        schedule.tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]


def test_a_clock_that_was_years_ahead_does_not_hide_the_nights_before(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    clock.set("2031-01-01 03:00:01")
    schedule.tick()
    clock.set("2026-03-03 03:00:01")
    schedule.tick()
    assert sorted(taken(store)) == [(TUESDAY_AT_3, "started"), ("2031-01-01T03:00:00+00:00", "started")]


def test_a_schedule_set_while_the_clock_was_ahead_is_followed(store, clock, said):
    clock.set("2031-01-01 12:00")
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for moment in ("2026-03-03 02:00", "2026-03-03 03:00:01", "2026-03-03 03:00:04"):
        clock.set(moment)
        schedule.tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


# Overlap, and nothing to do


def test_a_night_due_while_one_runs_is_one_recorded_skip(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    with night_process() as pid:
        running = nights.start_night(store, "auto", {}, pid)
        ticking(store, clock).tick()
        ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]
    assert last(store).reason == f"night {running} was running"


def test_a_night_that_just_begins_by_hand_is_waited_for_and_then_skipped_for(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    with night_process("--data", str(store.data)) as pid:
        ticking(store, clock).tick()
        assert taken(store) == []
        nights.start_night(store, "auto", {}, pid)
        ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]


def test_a_night_refused_because_another_was_faster_is_one_recorded_skip(store, clock, said):
    def refused(store: Database, model: str) -> Night:
        raise Conflict("a night is running already; wait for it or cancel it")

    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock, refused).tick()
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]
    assert "is running already" in last(store).reason


def test_with_nothing_new_no_process_starts_and_the_skip_says_so(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    for day in (3, 4):
        clock.set(f"2026-03-0{day} 03:00:01")
        schedule.tick()
    assert [outcome for _, outcome in taken(store)] == ["started", "skipped"]
    assert last(store).reason == "nothing new was said since night 1 began"


def test_where_nobody_has_rated_anything_the_skip_says_so(store, clock):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock, dies).tick()
    assert (taken(store), last(store).reason) == ([(TUESDAY_AT_3, "skipped")], "nobody has rated a reply yet")


def test_consent_that_changed_is_something_new(store, clock, said, consenting):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    schedule = ticking(store, clock)
    clock.set("2026-03-03 03:00:01")
    schedule.tick()
    clock.set("2026-03-03 12:00")
    users.set_consent(store, consenting, False)
    clock.set("2026-03-04 03:00:01")
    schedule.tick()
    assert [outcome for _, outcome in taken(store)] == ["started", "started"]


def test_what_a_failed_night_should_have_heard_is_still_new(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock, ends("failed")).tick()
    clock.set("2026-03-04 03:00:01")
    ticking(store, clock).tick()
    assert [outcome for _, outcome in taken(store)] == ["started", "started"]
    assert schedules.new_feedback(store) == 0


def test_an_interrupted_night_goes_on_though_nothing_is_new(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    ends("done")(store, "embedded")
    nights.start_night(store, "auto", {}, pid=0)  # its process is gone
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


# Changes in between


def test_a_time_of_a_schedule_that_no_longer_stands_is_not_due(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 02:59")
    schedules.set_schedule(store, None, "0 5 * * *", "UTC", True)
    schedule = ticking(store, clock)
    for moment in ("2026-03-03 03:00:01", "2026-03-03 05:00:01"):
        clock.set(moment)
        schedule.tick()
    assert taken(store) == [("2026-03-03T05:00:00+00:00", "started")]


def test_a_schedule_changed_right_after_its_time_loses_no_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    schedules.set_schedule(store, None, "0 5 * * *", "UTC", True)
    clock.set("2026-03-03 03:00:02")
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


def test_a_schedule_switched_off_right_after_its_time_records_a_skip(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    schedules.set_schedule(store, None, DAILY, "UTC", False)
    clock.set("2026-03-03 03:00:02")
    ticking(store, clock, dies).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]
    assert "switched off" in last(store).reason


def test_the_same_moment_in_another_time_zone_is_one_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    ticking(store, clock).tick()
    said()
    schedules.set_schedule(store, None, "0 4 * * *", "Europe/Berlin", True)
    clock.set("2026-03-03 03:00:30")
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


# A server that ends in between


def test_a_claim_whose_server_ended_is_started_again_once(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    dies_ticking(store, clock)
    clock.set("2026-03-03 03:10")
    ticking(store, clock).tick()
    ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]
    assert last(store).night == 1
    assert last(store).reason.startswith("on time; started again")


def test_a_claim_found_beyond_its_grace_is_a_recorded_skip(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    dies_ticking(store, clock)
    clock.set("2026-03-03 05:00")
    ticking(store, clock, dies).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]
    assert "the server ended before the night began" in last(store).reason


def test_a_claim_switched_off_meanwhile_is_a_recorded_skip(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    dies_ticking(store, clock)
    schedules.set_schedule(store, None, DAILY, "UTC", False)
    ticking(store, clock, dies).tick()
    assert taken(store) == [(TUESDAY_AT_3, "skipped")]


def test_a_night_whose_server_ended_before_it_wrote_which_is_found(store, clock, said):
    def started_and_died(store: Database, model: str) -> Night:
        ends("done")(store, model)
        raise KeyboardInterrupt

    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    with pytest.raises(KeyboardInterrupt):
        ticking(store, clock, started_and_died).tick()
    clock.set("2026-03-03 08:00")
    ticking(store, clock, dies).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]
    assert (last(store).night, len(nights.nights(store))) == (1, 1)


def test_a_night_that_still_loads_when_its_server_comes_back_is_not_started_twice(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    dies_ticking(store, clock)
    with night_process("--data", str(store.data)) as pid:
        ticking(store, clock, dies).tick()
        night = nights.start_night(store, "auto", {}, pid)
        ticking(store, clock, dies).tick()
    assert (taken(store), last(store).night) == ([(TUESDAY_AT_3, "started")], night)


def test_a_night_that_is_slow_to_announce_itself_is_found_later(store, clock, said):
    def slow(store: Database, model: str) -> Night:
        raise Conflict("the night has not announced itself within 60 s")

    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    dies_ticking(store, clock)
    with night_process("--data", str(store.data)) as pid:
        ticking(store, clock, slow).tick()
        assert (last(store).outcome, last(store).night) == ("started", None)
        night = nights.start_night(store, "auto", {}, pid)
        ticking(store, clock, dies).tick()
    assert (taken(store), last(store).night) == ([(TUESDAY_AT_3, "started")], night)


# By what was said


def by_feedback(store: Database, every_new: int, cron: str = "") -> None:
    schedules.set_schedule(store, None, cron, "UTC", True, every_new=every_new)


def test_too_little_that_is_new_starts_nothing(store, clock, said):
    by_feedback(store, 3)
    said()
    ticking(store, clock).tick()
    assert (schedules.new_feedback(store), taken(store)) == (2, [])


def test_enough_that_is_new_starts_one_night_without_any_clock(store, clock, said):
    by_feedback(store, 3)
    said(2)
    for _ in range(3):
        clock.moment += timedelta(seconds=3)
        ticking(store, clock).tick()
    assert (taken(store), schedules.new_feedback(store)) == ([("3 since the beginning", "started")], 0)
    said(3)
    clock.moment += timedelta(seconds=3)
    ticking(store, clock).tick()
    assert taken(store)[1:] == [("3 since night 1", "started")]


def test_every_kind_of_feedback_is_a_piece(store, clock, consenting):
    _, left, right = two_replies(store, consenting)
    vote(store, consenting, left, 1)
    vote(store, consenting, left, 0)
    compare(store, consenting, left, right, "left")
    rank(store, consenting, [left, right], [1, 2])
    correct(store, consenting, left, "better")
    critique(store, consenting, left, "too short")
    label(store, consenting, left, "demonstration")
    assert schedules.new_feedback(store) == 7


def test_enough_said_during_a_night_starts_the_next_when_it_has_ended(store, clock, said):
    by_feedback(store, 3)
    with night_process() as pid:
        night = nights.start_night(store, "auto", {}, pid)
        clock.moment += timedelta(minutes=5)
        said(3)
        ticking(store, clock).tick()
        assert taken(store) == []
    nights.end_night(store, night, "done", "learned")
    clock.moment += timedelta(minutes=5)
    ticking(store, clock).tick()
    ticking(store, clock).tick()
    assert taken(store) == [(f"3 since night {night}", "started")]


def test_a_night_by_feedback_that_failed_is_tried_again_when_as_much_again_was_said(store, clock, said):
    by_feedback(store, 3)
    said(3)
    for pieces, tried in ((0, 1), (1, 1), (1, 2)):  # 4, 5 and 6 pieces
        said(pieces)
        ticking(store, clock, ends("failed")).tick()
        ticking(store, clock, ends("failed")).tick()
        assert len(nights.nights(store)) == tried
    assert [due for due, _ in taken(store)] == ["3 since the beginning", "6 since the beginning"]


def test_clock_and_feedback_at_once_are_one_night(store, clock, said):
    by_feedback(store, 1, DAILY)
    clock.set("2026-03-03 03:00:01")
    for _ in range(2):
        clock.moment += timedelta(seconds=3)
        ticking(store, clock).tick()
    assert taken(store) == [(TUESDAY_AT_3, "started")]


def test_feedback_after_the_clock_was_set_back_is_not_lost(store, clock, said):
    by_feedback(store, 1)
    clock.set("2031-01-01 12:00")
    ticking(store, clock).tick()
    clock.set("2026-03-03 12:00")
    said()
    for _ in range(3):
        clock.moment += timedelta(seconds=3)
        ticking(store, clock).tick()
    assert ([outcome for _, outcome in taken(store)], schedules.new_feedback(store)) == (["started", "started"], 0)


def test_a_claim_by_feedback_whose_server_ended_is_started_again_once(store, clock, said):
    by_feedback(store, 1)
    dies_ticking(store, clock)
    clock.moment += timedelta(minutes=1)
    ticking(store, clock).tick()
    clock.moment += timedelta(minutes=1)
    ticking(store, clock).tick()
    assert taken(store) == [("1 since the beginning", "started")]


# Two at once


def test_the_database_gives_an_occurrence_to_one(store, clock):
    claims = [schedules.claim(store, "clock", TUESDAY_AT_3, "started", "on time") for _ in range(2)]
    assert [claim is None for claim in claims] == [False, True]


def test_two_servers_that_look_in_turn_start_one_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True)
    other = Database(store.data)
    clock.set("2026-03-03 03:00:01")
    for each in (store, other, store, other):
        ticking(each, clock).tick()
    other.close()
    assert (taken(store), len(nights.nights(store))) == ([(TUESDAY_AT_3, "started")], 1)


def test_many_threads_that_look_at_once_start_one_night(store, clock, said):
    schedules.set_schedule(store, None, DAILY, "UTC", True, every_new=1)
    clock.set("2026-03-03 03:00:01")
    together = threading.Barrier(8)

    def look() -> None:
        schedule = ticking(store, clock)
        together.wait()
        for _ in range(5):
            schedule.tick()

    threads = [threading.Thread(target=look) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (taken(store), len(nights.nights(store))) == ([(TUESDAY_AT_3, "started")], 1)


def test_a_night_that_takes_long_to_begin_holds_up_nobody_and_begins_once(store, clock, said):
    begun, may_go_on = threading.Event(), threading.Event()

    def slow(store: Database, model: str) -> Night:
        begun.set()
        assert may_go_on.wait(20)
        return ends("done")(store, model)

    schedules.set_schedule(store, None, DAILY, "UTC", True)
    clock.set("2026-03-03 03:00:01")
    first = threading.Thread(target=ticking(store, clock, slow).tick)
    first.start()
    assert begun.wait(20)
    looked = time.monotonic()
    ticking(store, clock, dies).tick()
    said()  # and people go on writing
    assert time.monotonic() - looked < 2
    may_go_on.set()
    first.join()
    assert (taken(store), len(nights.nights(store))) == ([(TUESDAY_AT_3, "started")], 1)


SERVER = """
import os, sys
from feedback.records import nights
from feedback.database.database import Database
from ui.schedule.schedule import Schedule

def start(store, model):
    with open(store.data / "started", "a") as file:
        file.write("one\\n")
    if sys.argv[2] == "dies":
        os._exit(9)
    night = nights.start_night(store, "auto", {}, os.getpid())
    nights.end_night(store, night, "done", "as the test says")
    return nights.night(store, night)

schedule = Schedule(Database(sys.argv[1]), "embedded", start=start)
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    schedule.tick()
"""


@contextmanager
def server(data: Path, way: str) -> Iterator[subprocess.Popen[str]]:
    """A real process that will look twenty times when it is told to."""
    command = [sys.executable, "-c", SERVER, str(data), way]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def go(*servers: subprocess.Popen[str]) -> list[int]:
    """Let real processes look at once; their exit statuses."""
    for each in servers:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in servers:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    return [each.wait(timeout=30) for each in servers]


def due_now(store: Database, clock: Clock) -> None:
    """A schedule that real processes find due: by the real clock, set two minutes ago."""
    clock.moment = datetime.now(UTC) - timedelta(minutes=2)
    schedules.set_schedule(store, None, "* * * * *", "UTC", True)


def test_two_real_servers_on_one_data_folder_start_one_night(store, clock, said):
    due_now(store, clock)
    with server(store.data, "lives") as one, server(store.data, "lives") as other:
        assert go(one, other) == [0, 0]
    assert (store.data / "started").read_text() == "one\n"
    assert [outcome for _, outcome in taken(store)].count("started") == 1
    assert len(nights.nights(store)) == 1


def test_a_real_server_that_is_killed_after_its_claim_leaves_the_night_to_the_next(store, clock, said):
    due_now(store, clock)
    with server(store.data, "dies") as one:
        assert go(one) == [9]
    (claim,) = schedules.unsettled(store)
    with server(store.data, "lives") as other:
        assert go(other) == [0]
    assert (store.data / "started").read_text() == "one\none\n"
    assert len(nights.nights(store)) == 1
    assert [each.night for each in schedules.occurrences(store) if each.id == claim.id] == [1]


def test_a_server_follows_the_schedule_for_as_long_as_it_runs(store, clock, said):
    schedule = ticking(store, clock)
    schedule.start()
    try:
        by_feedback(store, 1)
        until = time.monotonic() + 20
        while not (taken(store) and last(store).night) and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        schedule.stop()
    assert taken(store) == [("1 since the beginning", "started")]


def test_a_real_night_is_started_as_by_hand_and_says_why_it_learned_nothing(store, owner):
    _, reply, _ = two_replies(store, owner)
    vote(store, owner, reply, 1)  # without consent
    by_feedback(store, 1)
    Schedule(store, "embedded").tick()
    (night,) = nights.nights(store)
    assert (taken(store), last(store).night) == ([("1 since the beginning", "started")], night.id)
    assert (night.state, "no consent: 1" in night.reason) == ("nothing", True)
    until = time.monotonic() + 20
    while "no consent" not in (store.data / "night.log").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert "nothing to learn from" in (store.data / "night.log").read_text()
    Schedule(store, "embedded").tick()
    assert (len(taken(store)), len(nights.nights(store))) == (1, 1)


# Crontab lines


def days(cron: str, count: int = 3) -> list[str]:
    return [f"{each:%a %d %b}" for each in next_times(cron, "UTC", count, after=MONDAY)]


def test_weekdays_mean_what_crontab_means() -> None:
    assert days("0 3 * * 0") == days("0 3 * * 7") == days("0 3 * * sun") == ["Sun 08 Mar", "Sun 15 Mar", "Sun 22 Mar"]
    assert days("0 3 * * 1") == ["Mon 09 Mar", "Mon 16 Mar", "Mon 23 Mar"]
    assert days("0 3 * * 1-5", 5) == ["Tue 03 Mar", "Wed 04 Mar", "Thu 05 Mar", "Fri 06 Mar", "Mon 09 Mar"]
    assert days("0 3 * * 6,0") == days("0 3 * * 6-7") == ["Sat 07 Mar", "Sun 08 Mar", "Sat 14 Mar"]
    assert sorted(set(weekdays("*/2"))) == [0, 2, 4, 6]  # from Sunday on
    assert sorted(set(weekdays("1-5/2"))) == [1, 3, 5]
    assert sorted(set(weekdays("fri-mon"))) == [0, 1, 5, 6]
    assert days("0 3 * * *", 2) == ["Tue 03 Mar", "Wed 04 Mar"]


def test_a_day_of_the_month_and_a_weekday_are_either() -> None:
    assert days("0 3 5 * 2", 4) == ["Tue 03 Mar", "Thu 05 Mar", "Tue 10 Mar", "Tue 17 Mar"]


def test_the_clock_starts_on_the_weekday_that_crontab_means(store, clock, said):
    schedules.set_schedule(store, None, "0 3 * * 3", "UTC", True)  # Wednesday
    schedule = ticking(store, clock)
    for day in range(3, 10):
        clock.set(f"2026-03-0{day} 03:00:01")
        schedule.tick()
    assert taken(store) == [("2026-03-04T03:00:00+00:00", "started")]


def test_a_schedule_that_never_comes_due_or_is_malformed_is_refused() -> None:
    for cron in ("", "* * * *", "0 25 * * *", "0 3 * * 8", "0 3 * * 1-x", "0 3 * * 1/0", "0 3 31 2 *", "0 3 * * ,"):
        with pytest.raises(Refused):
            next_times(cron, "UTC", 1)


def test_a_whole_wish_is_checked_in_one_place_and_changes_nothing_when_refused(store, clock):
    wishes = [
        (("x", "UTC", True), "five fields"),
        ((DAILY, "Mars", True), "there is no time zone 'Mars'"),
        (("", "Mars", True, 60, 5), "there is no time zone 'Mars'"),
        ((DAILY, "UTC", True, -1), "grace_minutes is a whole number from 0 to 10,080, not -1"),
        ((DAILY, "UTC", True, 10_081), "not 10081"),
        ((DAILY, "UTC", True, 60, 0), "every_new is a whole number from 1"),
        ((DAILY, "UTC", True, 60, True), "not True"),
        (("", "UTC", True), "needs a clock"),
        (("* " * 5_000, "UTC", True), "five fields"),
    ]
    for wish, sentence in wishes:
        with pytest.raises(Refused, match=sentence):
            change(store, None, *wish)
    assert schedules.schedule(store) is None
    check("", "UTC", False)
    change(store, None, " 0  3 * * * ", "Europe/Berlin", True, 0, 50)
    assert schedules.schedule(store) == schedules.Schedule(DAILY, "Europe/Berlin", True, 0, 50, clock.text())


# The command


def nightschool(data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.nightschool("schedule", *arguments, "--data", str(data))


def test_the_command_sets_shows_and_switches_the_schedule(store):
    asked = ("--cron", "0 3 * * 1", "--time-zone", "Europe/Berlin", "--grace-minutes", "30", "--every-new", "50")
    assert commands.as_process("schedule", "set", *asked, "--data", str(store.data)).returncode == 0
    assert nightschool(store.data, "set", "--every-new", "20").returncode == 0  # the rest stays
    schedules.claim(store, "clock", TUESDAY_AT_3, "skipped", "nobody has rated a reply yet")
    shown = nightschool(store.data).stdout
    assert "0 3 * * 1 in Europe/Berlin, made up for within 30 min" in shown
    assert "every 20 new pieces; 0 since the last night" in shown
    assert shown.count("Mon ") == 5
    assert f"{TUESDAY_AT_3}: no night: nobody has rated a reply yet" in shown
    assert nightschool(store.data, "off").stdout.startswith("schedule   off\n")
    facts = json.loads(nightschool(store.data, "--json").stdout)
    assert (facts["schedule"]["enabled"], facts["next"], len(facts["occurrences"])) == (False, [], 1)
    assert nightschool(store.data, "on").returncode == 0
    standing = schedules.schedule(store)
    assert standing is not None
    assert (standing.enabled, standing.grace_minutes, standing.every_new) == (True, 30, 20)


def test_the_command_refuses_in_one_sentence_and_changes_nothing(store, tmp_path):
    wrong = [
        (("on",), "there is no schedule yet"),
        (("set",), "say what to set"),
        (("set", "--cron", "61 3 * * *"), "is not a schedule"),
        (("set", "--cron", DAILY, "--time-zone", "Mars"), "there is no time zone 'Mars'"),
        (("set", "--cron", DAILY, "--grace-minutes", "soon"), "--grace-minutes takes a whole number, not 'soon'"),
    ]
    for arguments, sentence in wrong:
        done = nightschool(store.data, *arguments)
        assert (arguments, done.returncode, done.stderr.count("\n")) == (arguments, 2, 1), done.stderr
        assert sentence in done.stderr
    assert schedules.history(store) == []
    assert "there is no Nightschool data" in nightschool(tmp_path / "none").stderr
    assert not (tmp_path / "none").exists()
