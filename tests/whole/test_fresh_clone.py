"""The first promise: clone, `make run`, and one chats; what is said is still there after a restart.

`make test` is not run from the clone: it would run itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from feedback.database.database import Database
from feedback.kinds import tally
from tests.conftest import REPOSITORY
from tests.helpers.browser import Visitor, chromium, free_port

SERVED_WITHIN_S = 900.0


def cloned(folder: Path) -> Path:
    """What git knows of this checkout, as its files are now, in an empty folder."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a git checkout, so it cannot be cloned")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, folder / name)
    return folder


def make_run(clone: Path, data: Path, port: int) -> subprocess.Popen[str]:
    """`make run`, until the page is served. Nothing of this environment or its caches is used."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment |= {"NIGHTSCHOOL_CACHE": str(clone / "cache")}
    python = f"PYTHON={Path(sys.base_prefix) / 'bin' / 'python3'}"
    command = ["make", "run", python, "EXTRAS=", f"ARGS=--data {data} --port {port} --side-by-side 0"]
    log = clone / "make-run.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    until = time.monotonic() + SERVED_WITHIN_S
    while "answers at" not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.2)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """End `make` and what it runs."""
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(60)


@pytest.mark.browser
@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_from_a_fresh_clone_one_chats_and_rates_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    clone, data, port = cloned(tmp_path / "clone"), tmp_path / "data", free_port()
    started = time.monotonic()
    process = make_run(clone, data, port)
    print(f"served after {time.monotonic() - started:.0f} s")
    url = f"http://127.0.0.1:{port}/"
    try:
        with chromium() as browser:
            visitor = Visitor(browser, url, width=1400).open()
            visitor.locate("#consent-yes").click()
            visitor.write_short(16)
            visitor.say("Name two colours.")
            visitor.thumb("down")
            visitor.locate("#reasons").get_by_label("Too short").check()
            visitor.locate("#save-why").click()
            expect(visitor.locate("#your-rating")).to_contain_text("Too short")
            visitor.thumb("down")  # taken back
            expect(visitor.locate("#your-rating")).to_be_hidden()
            visitor.locate("#correct").click()
            visitor.locate("#corrected-text textarea").fill("Red and blue.")
            visitor.locate("#save-correction").click()
            expect(visitor.locate("#your-correction")).to_be_visible()
            visitor.locate("#box textarea").fill("And two more?")
            visitor.locate("#two-replies").click()
            visitor.locate("#right-is-better").click(timeout=90_000)
            expect(visitor.locate("#pair")).to_be_hidden()
            kept = visitor.locate("#chat [data-testid=bot]").all_inner_texts()
            expect(visitor.locate("#chat")).to_contain_text("Your correction")
            assert visitor.outside == []
        end(process)

        process = make_run(clone, data, port)
        with chromium() as browser:
            visitor = Visitor(browser, url, width=1400).open()
            expect(visitor.locate("#chat [data-testid=bot]")).to_have_count(len(kept))
            assert visitor.locate("#chat [data-testid=bot]").all_inner_texts() == kept
            expect(visitor.locate("#chat")).to_contain_text("Your correction")
            expect(visitor.locate("#consent")).to_be_hidden()
    finally:
        end(process)
    store = Database(data)
    counts = {"votes": 3, "comparisons": 1, "rankings": 0, "corrections": 1, "critiques": 0, "labels": 0}
    assert tally.counts(store) == counts
    assert [row["value"] for row in store.rows("SELECT value FROM votes ORDER BY id")] == [-1, -1, 0]
    store.close()
