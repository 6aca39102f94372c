"""The names of each training method for people: in a menu, in a sentence and in help.

The methods themselves are declared in `training/algorithms`, one file each, and refer to this module, so that pages can
read it without importing the trainers. A plug-in method brings its own names when it is registered.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodFacts:
    """One method's names. `name` is what people type and the database stores."""

    name: str
    title: str  # in a menu
    help: str  # in the help of "--method": what it learns from, and how
    word: str = ""  # in a sentence; empty: the name in capitals

    @property
    def in_a_sentence(self) -> str:
        return self.word or self.name.upper()


FACTS: dict[str, MethodFacts] = {}
PLAN = "plan"  # instead of a method's name: the night decides, and says why
CHOICES = {PLAN: "Decided each night"}  # that and every method, by title


def declare(facts: MethodFacts) -> MethodFacts:
    """Register a method's names; a later declaration of the same name replaces the earlier one."""
    FACTS[facts.name] = facts
    CHOICES[facts.name] = facts.title
    return facts


def menu() -> list[tuple[str, str]]:
    """The entries of a menu: (title, name) pairs; the first is to ask for no method."""
    return [("By the settings", ""), *((each.title, name) for name, each in FACTS.items())]


def word_of(method: str) -> str:
    """A method's word in a sentence, also for a method that is no longer registered."""
    return FACTS.get(method, MethodFacts(method, method, "")).in_a_sentence


AUTO = declare(MethodFacts("auto", "DPO and KTO: all feedback", "pairs by DPO and thumbs by KTO", "DPO and KTO"))
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
        "reward models from pairs, ties and thumbs, and no adapter",
        "reward models",
    )
)
RLOO = declare(
    MethodFacts(
        "rloo",
        "RLOO: by reward models",
        "reward models, then a policy trained on its own replies by them",
    )
)
REINFORCE = declare(
    MethodFacts("reinforce", "REINFORCE: by reward models", "the same with a moving baseline"),
)
ONLINE_DPO = declare(
    MethodFacts(
        "online-dpo",
        "Online DPO: by reward models",
        "reward models, then DPO on pairs of its own replies that they choose between",
        "online DPO",
    )
)
PPO = declare(MethodFacts("ppo", "PPO: by reward models", "the same by PPO"))
DEFAULT = AUTO.name  # where settings are asked for, and no method
