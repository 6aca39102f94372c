"""The account of risk: how many false promotions a year are accepted, and how much of that is spent."""

from feedback.accounts import users
from feedback.database.database import Database
from feedback.raters import evidence
from feedback.records import decisions, settings

ALONE, ACCOUNTS = 1.0, 0.05  # false promotions a year, of one person without accounts, and where there are accounts


def risk(store: Database) -> float:
    """The expected number of false promotions a year that is accepted: the setting `risk`, or else by accounts."""
    return float(settings.setting(store, "risk")) or (ACCOUNTS if users.has_accounts(store) else ALONE)


def allowed(store: Database, share: float) -> float:
    """The chance of a false promotion that the next test may take; `share` is its usual one of a year's risk."""
    return float(evidence.allowed(risk(store), decisions.spent(store), share))


def in_words(store: Database) -> str:
    """The account in words: "this year 0.012 of 0.05 is spent"."""
    return f"this year {decisions.spent(store):.3g} of {risk(store):g} is spent"
