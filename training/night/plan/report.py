"""What a night would do, line by line, as `--dry-run` prints it."""

import json
from collections import Counter
from collections.abc import Iterator

from feedback.database.database import Database
from feedback.example_types import Examples
from feedback.records import settings
from training.night.plan import manifest, planner
from training.night.plan.reasons import in_words
from training.night.plan.stages import in_stages
from training.night.run_dir import Plan


def lines(store: Database, plan: Plan, examples: Examples) -> Iterator[str]:
    """The plan, what it learns from, and how long it is expected to take."""
    nothing = planner.why_nothing(store, examples, plan, again=False)
    yield nothing or "; ".join(filter(None, (f"would train on {in_words(examples)}", in_stages(plan))))
    if plan.why:
        yield plan.why
    if not nothing:
        since = manifest.last_taught(store)
        yield f"new: {sum(each.at >= since for each in examples):,}; older: {in_months(examples, since) or 'none'}"
        divided = planner.parts(store, plan, examples)
        training, stopping, held_out = map(len, (divided.training, divided.stopping, divided.held_out))
        yield f"parts: {training:,} to train on, {stopping:,} to stop by, {held_out:,} held out"
        limit = settings.setting(store, "night_minutes")
        about = "not known before the first" if plan.minutes is None else f"about {max(1, round(plan.minutes))}"
        yield f"minutes: {about} ({limit} may be)"
    yield f"method {plan.method}, {plan.precision}, {plan.threads} threads, settings {json.dumps(plan.settings)}"


def in_months(examples: Examples, since: str) -> str:
    """The number of examples from before a moment, by month, in words."""
    months = Counter(each.at[:7] for each in examples if each.at < since)
    told = ", ".join(f"{count:,} of {month}" for month, count in sorted(months.items()))
    return f"{months.total():,} ({told})" if months else ""
