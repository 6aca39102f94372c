"""`nightschool rehearse` (`python -m training.rehearsal.run`): shows that feedback changes behaviour.

A scripted rater with a stated taste asks the assistant everyday questions, chooses between two replies through the
HTTP API that a person's click uses, and has a night trained on its choices. Then the new adapter and the base answer
questions that nobody has asked before, and the same taste judges the replies blind.
A rehearsal works in a data folder of its own, which can be served and inspected afterwards; yours is not touched.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import click
import httpx

from assistant import command_line
from assistant.command_line import FILE, FOLDER
from assistant.environment import prepare, program
from feedback.database.database import Database
from feedback.errors import Refused
from feedback.records import methods, nights
from feedback.records.adapters import BASE
from feedback.records.nights import RUNNING
from training.evaluation.text_quality import whole_words
from training.rehearsal import best_of, preference_rule
from training.rehearsal.best_of import BestOf
from training.rehearsal.figures import Figures
from training.rehearsal.measure import Answers, measure
from training.rehearsal.preference_rule import Correct, Taste
from training.rehearsal.questions import halves, questions

AT_ONCE = 16  # pairs requested concurrently
STARTS_WITHIN_S = 300.0
LONGEST = 512  # tokens of a reply, at most
SEEDS = 2**32
PICTURES = (".png", ".pdf", ".svg")


class Failed(Exception):
    """The rehearsal cannot go on; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a rehearsal; returns the exit status: 0 done, 1 failed, 2 bad input."""
    return command_line.run(command, arguments, "nightschool rehearse")


@click.command("rehearse", help="Show that feedback changes behaviour.")
@click.option("--data", type=FOLDER, metavar="DIR", help="A new folder (default: rehearsals/ and the time).")
@command_line.model_option
@click.option("--taste", type=FILE, metavar="FILE", help="Python with def prefers(prompt, a, b) -> float.")
@click.option("--comparisons", default=300, show_default=True, metavar="N", help="Prompts to compare two replies to.")
@click.option(
    "--interactions",
    type=int,
    metavar="N",
    help="Instead of comparisons: so many prompts, half of them answered once and corrected.",
)
@click.option("--wrong", default=0.0, show_default=True, metavar="SHARE", help="Of the choices, turned round by lot.")
@click.option(
    "--best-of",
    type=int,
    metavar="N",
    help="Train reward models and no adapter, and measure the best of up to N replies by them (arXiv 2210.10760).",
)
@click.option("--prompts", default=220, show_default=True, metavar="N", help="Unseen prompts to judge the adapter on.")
@click.option("--max-tokens", default=64, show_default=True, metavar="N", help=f"Of a reply, at most {LONGEST}.")
@click.option("--method", metavar="NAME", help="Of the night (default: the night's own).")
@click.option("--set", multiple=True, metavar="NAME=VALUE", help="A setting of the night, e.g. loss=hinge; repeatable.")
@click.option("--seed", default=0, show_default=True, metavar="N", help="The seed of everything random.")
@click.option(
    "--plot", type=FILE, metavar="FILE", help="Where to save the plot (default: rehearsal.png in the folder)."
)
@click.option("--json", is_flag=True, help="The figures as one JSON object, on the last line.")
def command(**asked: Any) -> int:
    """Run a rehearsal with the options of the command line."""
    options = SimpleNamespace(**asked)
    prepare(options.model)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an orderly exit stops the server, too
    try:
        rehearse(options)
    except httpx.HTTPError:
        print("nightschool: the rehearsal failed: its server stopped answering; server.log says why", file=sys.stderr)
        return 1
    except Failed as error:
        print(f"nightschool: the rehearsal failed: {error}", file=sys.stderr)
        return 1
    return 0


def rehearse(options: SimpleNamespace) -> Figures | BestOf:
    """Run a whole rehearsal, from the taste to the plot. Raises `Refused` on bad input, `Failed` if a step fails."""
    from training.algorithms import registry

    began = time.monotonic()

    # 1. check the options
    likes = preference_rule.load(options.taste)
    if not 1 <= options.max_tokens <= LONGEST:
        raise Refused(f"--max-tokens is from 1 to {LONGEST}, not {options.max_tokens}")
    if not 0 <= options.seed < SEEDS:
        raise Refused(f"--seed is from 0 to {SEEDS - 1:,}, not {options.seed}")
    if not 0 <= options.wrong < 0.5:
        raise Refused(f"--wrong is a share from 0 to below 0.5, not {options.wrong:g}")
    require_picture(options.plot)
    if options.best_of is not None:
        best_of.require_possible(options)
        options.method = methods.REWARD.name
    options.settings = registry.parse_settings(options.method or methods.DEFAULT, options.set)
    every, unseen = questions(options)
    to_correct, asked = halves(every) if options.interactions is not None else ([], every)
    corrects = preference_rule.load_corrections(options.taste) if to_correct else None
    data = new_folder(options.data)
    half = f"{len(to_correct)} corrections and " if to_correct else ""
    print(f"rehearsing in {data}: {half}{len(asked)} comparisons, then {len(unseen)} unseen prompts", flush=True)

    with serving(data, options.model) as address, httpx.Client(base_url=address, timeout=600) as api:
        # 2. the rater asks and chooses
        send(api, "POST", "/api/consent", {"given": True})
        if corrects:
            correct(api, to_correct, options, corrects)
        answers = ask(api, asked, options)
        choices = rate(api, answers, likes, options)
        print(f"  {choices.count('tie')} ties among {len(choices)} comparisons", flush=True)

        # 3. train a night, judged like any other
        night = train(api, options)

        # 4. base and adapter answer the unseen prompts
        pair = [BASE, str(night["adapter"])]
        judged = ask(api, unseen, options, pair) if options.best_of is None else []

    # 5. the taste judges blind; only then is it looked up which adapter wrote which reply
    from training.rehearsal import plot

    store, path = Database(data), options.plot or data / "rehearsal.png"
    if options.best_of is not None:
        known = whole_words(texts_of(answers))
        best = best_of.measured(store, options, likes, known, unseen, night["id"], len(choices))
        plot.draw_best(best, path)
        best_of.tell(best, options.json)
        return best
    figures = measure(store, options, likes, answers, judged, night, began)
    plot.draw(figures, nights.night_steps(store, night["id"]), path)
    tell(figures, path, data, options.json)
    return figures


def require_picture(path: Path | None) -> None:
    """Raise `Refused` if no picture can be saved at this path; None is a path of our own."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise Refused(f"--plot is a picture ending in {' or '.join(PICTURES)}, not {str(path)!r}")
    folder = next(each for each in path.absolute().parents if each.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise Refused(f"--plot cannot be saved at {path}; name a file in a folder that can be written to")


def new_folder(wanted: Path | None) -> Path:
    """Create the data folder of this rehearsal. Raises `Refused` if it exists and is not an empty folder."""
    data = wanted or Path("rehearsals") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise Refused(f"{data} holds something already; a rehearsal begins in a new folder")
    data.mkdir(parents=True, exist_ok=True)
    return data


@contextmanager
def serving(data: Path, model: str) -> Iterator[str]:
    """Run a server on the data folder and yield its address. Raises `Failed` if it does not start."""
    log = data / "server.log"
    options = ["--data", str(data), "--model", model, "--port", "0", "--side-by-side", "0"]
    with log.open("w") as output:
        server = subprocess.Popen(program("ui.app", *options), stdout=output, stderr=output)
    try:
        until = time.monotonic() + STARTS_WITHIN_S
        while "answers at " not in log.read_text():
            if server.poll() is not None or time.monotonic() > until:
                raise Failed(f"the server does not start; {log} says why")
            time.sleep(0.2)
        yield log.read_text().split("answers at ")[1].split()[0]
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()


def send(api: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """Send one API request. Raises `Failed` with the server's own message."""
    answer = api.request(method, path, json=body, headers={"Idempotency-Key": uuid4().hex})
    if answer.is_error:
        raise Failed(f"{method} {path} was refused ({answer.status_code}): {answer.text}")
    return answer.json()


def ask(
    api: httpx.Client, prompts: Sequence[str], options: SimpleNamespace, adapters: list[str] | None = None
) -> list[Answers]:
    """Ask for two replies to each prompt, from the serving adapter or from the two `adapters`."""
    first_seed = options.seed * 1_000_000 + (500_000 if adapters else 0)

    def one(number: int) -> Answers:
        body = {"messages": [{"role": "user", "content": prompts[number]}], "max_tokens": options.max_tokens}
        body |= {"seed": first_seed + 2 * number, "adapters": adapters}
        pair = send(api, "POST", "/api/pairs", body)
        left, right = pair["left"], pair["right"]
        return Answers(prompts[number], left["reply"], right["reply"], left["text"], right["text"])

    answers: list[Answers] = []
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for each in pool.map(one, range(len(prompts))):
            answers.append(each)
            if len(answers) % 50 == 0 or len(answers) == len(prompts):
                print(f"  {len(answers)} of {len(prompts)} answered, {time.monotonic() - began:.0f} s", flush=True)
    return answers


def correct(api: httpx.Client, prompts: Sequence[str], options: SimpleNamespace, corrects: Correct) -> None:
    """Ask for a reply to each prompt, and correct it as the taste would have it."""

    def one(number: int) -> tuple[str, str]:
        body = {"model": "nightschool", "messages": [{"role": "user", "content": prompts[number]}]}
        body |= {"max_tokens": options.max_tokens, "seed": options.seed * 1_000_000 + 2 * number + 1}
        made = send(api, "POST", "/v1/chat/completions", body)
        return made["id"], made["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        replies = list(pool.map(one, range(len(prompts))))
    for prompt, (reply, text) in zip(prompts, replies, strict=True):
        better = corrects(prompt, text)
        if better.strip() and better.strip() != text.strip():
            send(api, "POST", "/api/corrections", {"reply": reply, "text": better})


def texts_of(answers: Sequence[Answers]) -> list[str]:
    """All that was said in these answers."""
    return [text for each in answers for text in (each.prompt + " .", each.left_text, each.right_text)]


def rate(api: httpx.Client, answers: Sequence[Answers], likes: Taste, options: SimpleNamespace) -> list[str]:
    """Vote on every pair, and return the choices; `options.wrong` of them by lot the wrong way round."""
    known, chance = whole_words(texts_of(answers)), Random(options.seed)
    names = {1: "left", -1: "right", 0: "tie"}
    choices = []
    for each in answers:
        chosen = preference_rule.choose(likes, each.prompt, each.left_text, each.right_text, known)
        choices.append(names[-chosen if chance.random() < options.wrong else chosen])
    for each, choice in zip(answers, choices, strict=True):
        send(api, "POST", "/api/comparisons", {"left": each.left, "right": each.right, "choice": choice})
    return choices


def train(api: httpx.Client, options: SimpleNamespace) -> dict[str, Any]:
    """Start a night as an operator does, and follow it to its end. Raises `Failed` if it fails."""
    night = send(api, "POST", "/api/nights", {"method": options.method, "settings": options.settings})
    shown = ""
    while night["state"] == RUNNING:
        time.sleep(2)
        night = send(api, "GET", f"/api/nights/{night['id']}")
        line = f"  night: {night['phase']}, step {night['step']} of at most {night['steps']}"
        if line != shown and (night["phase"] != "training" or night["step"] % 10 == 0):
            print(line, flush=True)
        shown = line
    if night["state"] != "done" or not (night["adapter"] or options.best_of):
        raise Failed(f"the night made no adapter: {night['state']}: {night['reason']}")
    print(f"  {night['adapter'] or 'reward models'}: {night['reason']}", flush=True)
    return dict(night)


def tell(figures: Figures, plot: Path, data: Path, as_json: bool) -> None:
    """Print the figures in words, and with `as_json` also as JSON."""
    print(
        f"on {figures.prompts} unseen prompts {figures.adapter} beats the base in {figures.win_rate:.1%} "
        f"({figures.win_rate_low:.1%} to {figures.win_rate_high:.1%}) of the replies, by the taste: {figures.taste}\n"
        f"replies had {figures.words_before:.0f} words and have {figures.words_after:.0f}; the adapter's KL "
        f"from the base is {figures.kl_words}; the gate said: {figures.verdict}\n"
        f"{figures.minutes:.0f} minutes; drawn in {plot}; look around with: nightschool serve --data {data}",
        flush=True,
    )
    if as_json:
        print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    sys.exit(main())
