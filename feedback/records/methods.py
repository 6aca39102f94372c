"""What people read of each training method: its name, and what it is called in a menu, in a sentence and in help.

The methods themselves are declared in `training/algorithms`, a file each, and refer to this; pages read it without
loading what trains. A method from elsewhere brings its own when it is registered.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodFacts:
    """A method for people. `name` is what is typed and stored."""

    name: str
    title: str  # in a menu
    help: str  # after "--method": what it learns from, and how
    word: str = ""  # in a sentence; empty: its name in capitals

    @property
    def in_a_sentence(self) -> str:
        return self.word or self.name.upper()


FACTS: dict[str, MethodFacts] = {}


def declare(facts: MethodFacts) -> MethodFacts:
    """Let a method be known under its name; the latest declaration of a name stands."""
    FACTS[facts.name] = facts
    return facts


def menu() -> list[tuple[str, str]]:
    """What a person chooses from: titles, and the names they stand for."""
    return [(each.title, name) for name, each in FACTS.items()]


def word_of(method: str) -> str:
    """What a method is called in a sentence; also one that is not known here any more."""
    return FACTS.get(method, MethodFacts(method, method, "")).in_a_sentence


AUTO = declare(MethodFacts("auto", "Automatic: all that was said", "pairs by DPO and thumbs by KTO", "automatic"))
DPO = declare(MethodFacts("dpo", "DPO: choices and corrections", "pairs only"))
KTO = declare(MethodFacts("kto", "KTO: thumbs", "thumbs only"))
SFT = declare(
    MethodFacts(
        "sft",
        "Imitation: corrections, good replies",
        "demonstrations and corrections, by imitation",
        "imitation",
    )
)
REWARD = declare(
    MethodFacts(
        "reward",
        "Reward models, and no adapter",
        "reward models from pairs and ties, and no adapter",
        "reward models",
    )
)
RLOO = declare(
    MethodFacts(
        "rloo",
        "RLOO: by reward models",
        "reward models, and a policy that learns by them from its own replies",
    )
)
REINFORCE = declare(
    MethodFacts("reinforce", "REINFORCE: by reward models", "the same with a moving baseline"),
)
PPO = declare(MethodFacts("ppo", "PPO: by reward models", "the same by PPO"))
DEFAULT = AUTO.name
