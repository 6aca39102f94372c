"""The operator's settings, each declared once, here; API, page, command line and docs read this list."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feedback.database.database import Database, now
from feedback.errors import NotFound, Refused
from feedback.records import audit, methods


@dataclass(frozen=True)
class Setting:
    """One setting: a share from 0 to 1, a whole number, or one of `choices`."""

    name: str
    title: str
    help: str
    default: Any
    least: int = 0
    most: int = 0
    unit: str = ""  # the unit of a whole number
    choices: Mapping[str, str] | None = None  # word -> what it means

    @property
    def is_share(self) -> bool:
        return isinstance(self.default, float)

    def require(self, value: Any) -> None:
        """Raises `Refused` on an invalid value."""
        if self.choices is not None:
            if not isinstance(value, str) or value not in self.choices:
                raise Refused(f"{self.name} is one of {', '.join(self.choices)}, not {value!r}")
        elif self.is_share:
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise Refused(f"{self.name} is a number from 0 to 1, not {value!r}")
        elif type(value) is not int or not self.least <= value <= self.most:
            span = f"from {self.least:,} to {self.most:,}"
            raise Refused(f"{self.name} is a whole number of {self.unit} {span}, not {value!r}")


GATE = {
    "on": "an adapter that passes the gate is promoted",
    "advise": "the gate judges, and an operator promotes",
    "off": "no judgement; every new adapter that passes its proof is promoted",
}
SETTINGS = {
    each.name: each
    for each in (
        Setting(
            "side_by_side_share",
            "Turns that show two replies",
            "The share of turns that show two replies, 0 to 1.",
            0.1,
        ),
        Setting(
            "gate",
            "Who promotes a new adapter",
            "What happens to the adapter that a night has made.",
            "on",
            choices=GATE,
        ),
        Setting(
            "risk",
            "False promotions a year",
            "The expected number of adapters a year, 0 to 1, that are promoted and are no better; 0: by the number of "
            "people, 1 for one person without accounts, who feels it and takes it back, and 0.05 with accounts.",
            0.0,
        ),
        Setting(
            "night_method",
            "How nights learn",
            "The method of nights for which none is named; plan: each night decides by what there is to learn from, "
            "and says why.",
            methods.PLAN,
            choices=methods.CHOICES,
        ),
        Setting(
            "night_minutes",
            "Minutes of training a night",
            "A night learns from all that is new, and from as much older feedback of every month as it has time for.",
            30,
            least=1,
            most=10_000,
            unit="minutes",
        ),
        Setting(
            "online_dpo_comparisons",
            "Comparisons before online DPO",
            "By the plan, a policy learns from its own replies from so many comparisons on. With 500, some 75 are "
            "held out: enough to show that reward models right on 65 % are better than chance.",
            500,
            least=1,
            most=10_000_000,
            unit="comparisons",
        ),
        Setting(
            "policy_comparisons",
            "Comparisons before reinforcement learning",
            "By the plan, RLOO or PPO begin with so many comparisons. Reward models of fewer than 2,000 were barely "
            "better than chance in arXiv 2210.10760, section 3.3.",
            2_000,
            least=1,
            most=10_000_000,
            unit="comparisons",
        ),
        Setting(
            "policy_accuracy",
            "Accuracy of reward models for reinforcement learning",
            "By the plan, RLOO or PPO begin when the last reward models' held-out accuracy is surely (95 %) above this "
            "share. 0.55 is what reward models right on 61 % of 300 held-out pairs surely reach.",
            0.55,
        ),
        Setting(
            "policy_agreement",
            "Agreement of people for reward models",
            "By the plan, no reward model is learned from while people agree on less than this share of what several "
            "of them rated. In arXiv 2203.02155 and 2009.01325 they agreed on 73 %.",
            0.6,
        ),
        Setting(
            "policy_method",
            "The method of reinforcement learning",
            "What the plan chooses once reward models are good enough. RLOO reached a higher reward than PPO in arXiv "
            "2402.14740, and needs no value model.",
            methods.RLOO.name,
            choices={each.name: each.title for each in (methods.RLOO, methods.PPO)},
        ),
        Setting(
            "raters_per_question",
            "People asked the same question",
            "A question is asked until this many people have answered it.",
            1,
            least=1,
            most=1000,
            unit="people",
        ),
        Setting(
            "feedback_per_hour",
            "Feedback per person and hour",
            "The most pieces of feedback accepted from one person in an hour; 0: no limit.",
            600,
            most=1_000_000,
            unit="pieces",
        ),
        Setting(
            "imported_prompts",
            "Prompts of an imported file a night",
            "A night learns from the newest prompts of each imported rater, at most so many; "
            "once several people rate, from fewer, as of everybody.",
            5_000,
            least=1,
            most=10_000_000,
            unit="prompts",
        ),
        Setting(
            "retention_days",
            "Conversations are kept for",
            "Before each night, conversations older than this lose their content; 0: never.",
            0,
            most=36_500,
            unit="days",
        ),
    )
}


def register(declared: Setting) -> None:
    """Add a setting everywhere that settings appear. Raises `ValueError` on a name in use."""
    if declared.name in SETTINGS:
        raise ValueError(f"there is a setting {declared.name!r} already")
    SETTINGS[declared.name] = declared


def setting(store: Database, name: str) -> Any:
    """The current value of a setting, or its default. Raises `NotFound` on an unknown name."""
    declared = _declared(name)
    row = store.row("SELECT value FROM settings WHERE name = ? ORDER BY id DESC LIMIT 1", name)
    return json.loads(row["value"]) if row else declared.default


def all_settings(store: Database) -> dict[str, Any]:
    """The current value of every setting, by name."""
    return {name: setting(store, name) for name in SETTINGS}


def set_setting(store: Database, user: int | None, name: str, value: Any) -> None:
    """Change a setting, and audit it. Raises `NotFound` on an unknown name, `Refused` on an invalid value."""
    _declared(name).require(value)
    with store.transaction():
        store.insert("settings", {"user": user, "name": name, "value": json.dumps(value), "at": now()})
        audit.record(store, user, "set", name, {"value": value})


def set_all(store: Database, user: int | None, values: Mapping[str, Any]) -> None:
    """Change several settings, all or none. Raises as `set_setting` does."""
    with store.transaction():
        for name, value in values.items():
            set_setting(store, user, name, value)


def _declared(name: str) -> Setting:
    if name not in SETTINGS:
        raise NotFound(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    return SETTINGS[name]
