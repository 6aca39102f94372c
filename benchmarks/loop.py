"""The whole loop on this machine: how soon a reply begins, how long a night takes, what it all weighs.

    python -m benchmarks.loop [--pairs FILE] [--data DIR] [--next-night]

A real server and a real night as processes of their own, as a person runs them. The last line is one JSON object:
`first_token_s` (median of 7 replies to a prompt of about 200 tokens), `night_200_minutes` (a whole night of one epoch
on 200 pairs of at most 256 tokens, from its start to the finished adapter), `rss_gb` (most that server, engine
and night held together), `page_interactive_s` (median of 5 loads until the message box takes text), `processor`. With
`--next-night`, `night_50_beside_500_minutes`: by default settings, on 50 new comparisons after a night on 500 older
ones, whose own minutes are `night_500_minutes`, in place of the night of 200. What could not be measured is null, and
`skipped` says why.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from assistant.models import base_model, chat_template
from feedback.accounts import users
from feedback.chats import conversations
from feedback.chats.conversations import Provenance
from feedback.database.database import Database
from feedback.kinds.comparison import compare
from feedback.messages import Message

PAIRS = Path(__file__).parents[2] / "shared" / "data" / "pairs_helpful_train.jsonl"
# Nights to measure: name, pairs of the file before those that it adds, their number, settings
USUAL = (("night_200_minutes", 0, 200, ["epochs=1"]),)
NEXT: tuple[tuple[str, int, int, list[str]], ...] = (
    ("night_500_minutes", 0, 500, []),
    ("night_50_beside_500_minutes", 500, 50, []),
)
LONGEST = 256  # tokens of a prompt with either reply
QUESTION = "I am planning a long weekend by train with two small children and an old dog, " * 9 + "any advice?"


def main() -> None:
    """Measure everything once and print it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=Path, default=PAIRS)
    options.add_argument("--data", type=Path, help="keep the data folder here")
    options.add_argument("--next-night", action="store_true", help="measure a night of few new comparisons instead")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(chosen.data or Path(scratch) / "data", chosen.pairs, chosen.next_night)))


def measure(data: Path, pairs: Path, next_night: bool = False) -> dict[str, Any]:
    """Measure all figures."""
    skipped = {}
    figures: dict[str, Any] = {"first_token_s": None, "night_200_minutes": None, "rss_gb": None}
    figures |= {"page_interactive_s": None, "processor": processor()}
    with serving(data) as (address, server), heaviest(server) as weight:
        figures["first_token_s"] = first_token_s(address)
        say(f"first token {figures['first_token_s']:.2f} s")
        try:
            figures["page_interactive_s"] = page_interactive_s(address)
            say(f"page interactive {figures['page_interactive_s']:.2f} s")
        except Exception as error:  # no browser on this machine
            skipped["page_interactive_s"] = str(error).splitlines()[0]
        if pairs.is_file():
            for name, skipping, count, settings in NEXT if next_night else USUAL:
                fill(data, pairs, skipping, count)
                figures[name] = night_minutes(data, weight, settings)
                say(f"{name} {figures[name]:.1f}, most memory so far {weight.most / 2**30:.2f} GB")
        else:
            skipped["night_200_minutes"] = f"there is no {pairs}"
        figures["rss_gb"] = round(weight.most / 2**30, 2)
    return figures | ({"skipped": skipped} if skipped else {})


def say(words: str) -> None:
    """Print progress to standard error, apart from the result."""
    print(words, file=sys.stderr, flush=True)


def processor() -> str:
    """This machine's processor: its name, cores and vector extensions."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    named = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    kinds = [kind for kind in ("avx2", "avx512f", "amx_bf16") if f" {kind} " in text]
    return f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores, {' '.join(kinds)}"


@contextmanager
def serving(data: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a server; yields its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ui.app", "--data", str(data), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "answers at" in line:
                break
        else:
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


class Weight:
    """The peak memory of some processes together, pages that they share counted once; `most` in bytes."""

    def __init__(self, *processes: psutil.Process) -> None:
        self.processes = list(processes)
        self.most = 0
        self.over = threading.Event()

    def watch(self) -> None:
        """Look four times per second until it is over."""
        while not self.over.wait(0.25):
            total = 0
            for process in list(self.processes):
                try:
                    every = [process, *process.children(recursive=True)]  # the engine is a process of its own
                except psutil.NoSuchProcess:
                    self.processes.remove(process)
                    continue
                for each in every:
                    with suppress(psutil.Error):  # it has just ended
                        total += each.memory_full_info().pss if psutil.LINUX else each.memory_info().rss
            self.most = max(self.most, total)


@contextmanager
def heaviest(server: psutil.Process) -> Iterator[Weight]:
    """Watch the memory of the server, and of what is added to it."""
    weight = Weight(server)
    watcher = threading.Thread(target=weight.watch)
    watcher.start()
    try:
        yield weight
    finally:
        weight.over.set()
        watcher.join()


def first_token_s(address: str) -> float:
    """Median seconds from the request to the first text of a streamed reply."""
    taken = []
    for at in range(8):
        # No two prompts begin alike, so that nothing computed for one helps another.
        body = {"messages": [{"role": "user", "content": f"Trip {at}. {QUESTION}"}], "stream": True, "max_tokens": 8}
        started = time.perf_counter()
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=120) as response:
            for line in response.iter_lines():
                chunk = line.removeprefix("data: ")
                if chunk.startswith("{") and json.loads(chunk)["choices"][0]["delta"].get("content"):
                    taken.append(time.perf_counter() - started)
                    break
    return round(statistics.median(taken[1:]), 3)  # the first warms up


def page_interactive_s(address: str) -> float:
    """Median seconds until the message box of the page takes text."""
    from playwright.sync_api import sync_playwright

    taken = []
    with sync_playwright() as playwright:
        named = os.environ.get("NIGHTSCHOOL_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=named or None, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(6):
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(address, wait_until="commit")
            page.locator("#box textarea").fill("hello", timeout=60_000)
            taken.append(time.perf_counter() - started)
            page.close()
        browser.close()
    return round(statistics.median(taken[1:]), 3)


def fill(data: Path, pairs: Path, skipping: int, wanted: int) -> None:
    """Put pairs of at most 256 tokens into the ledger, as choices of the local owner."""
    tokenizer = base_model.load_tokenizer(base_model.find_base("embedded"))
    store = Database(data)
    owner = users.local_owner(store)
    users.set_consent(store, owner, True)
    unknown = Provenance(adapter=None, base_sha256=None, template_sha256=None, sampling={})
    count = 0
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        messages = [Message(each["role"], each["content"]) for each in row["prompt"]]
        longer = max(row["chosen"], row["rejected"], key=len)
        length = len(chat_template.encode_prompt(tokenizer, messages, 10**6)) + len(tokenizer(longer)["input_ids"])
        if length > LONGEST or row["chosen"] == row["rejected"] or messages[-1].role != "user":
            continue
        count += 1
        if count <= skipping:
            continue
        parent = conversations.record_messages(store, owner, "import", messages)
        chosen = conversations.add_reply(store, parent, row["chosen"], unknown)
        rejected = conversations.add_reply(store, parent, row["rejected"], unknown)
        compare(store, owner, chosen, rejected, "left")
        if count == skipping + wanted:
            break
    store.close()
    if count < skipping + wanted:
        raise RuntimeError(f"{pairs} holds only {count} pairs of at most {LONGEST} tokens")


def night_minutes(data: Path, weight: Weight, settings: Sequence[str]) -> float:
    """Minutes of a night, from its start to the finished adapter, proved and judged."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "training.night", "--data", str(data), "--method", "auto"]
    command += [part for each in settings for part in ("--set", each)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    weight.processes.append(psutil.Process(process.pid))
    if process.wait() != 0:
        raise RuntimeError(f"the night failed with exit status {process.returncode}")
    return round((time.perf_counter() - started) / 60, 2)


if __name__ == "__main__":
    main()
