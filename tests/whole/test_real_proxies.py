"""nginx and Caddy with the very blocks of docs/proxy.md, in front of a real server: a browser and a stream."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, Response, expect, sync_playwright

from assistant.models.base_model import Base
from feedback.accounts import users
from feedback.database.database import Database
from tests.conftest import REPOSITORY
from tests.helpers.browser import QUIET, REPLY_MS, chromium_path, free_port
from tests.helpers.processes import serving

pytestmark = [pytest.mark.soak, pytest.mark.browser]
OPTIONS = ("--trusted-proxy", "127.0.0.1", "--side-by-side", "0")
NAME, OWNER, PASSWORD = "chat.example.org", "owner", "a quiet evening by the sea"
STORY = {
    "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
    "max_tokens": 60,
    "stream": True,
}
BLOCK = re.compile(r"```(nginx|caddyfile)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((REPOSITORY / "docs" / "proxy.md").read_text())


@dataclass(frozen=True)
class Proxied:
    """A proxy that answers by TLS: at which port and under which prefix."""

    port: int
    prefix: str

    @property
    def url(self) -> str:
        """Where a browser finds the chat."""
        return f"https://{NAME}:{self.port}{self.prefix}/"


def program(name: str) -> str:
    """Where a program is. Skips the test where it is not."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{name} is not on this machine (Debian: apt-get install {name})")
    return found


@contextmanager
def running(command: list[str], port: int, folder: Path, **environment: str) -> Iterator[None]:
    """A proxy for as long as the block runs."""
    said = folder / "proxy.log"
    with said.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment | {"PATH": "/usr/bin:/usr/sbin"})
        try:
            end = time.monotonic() + 20
            while not answers(port):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < end, said.read_text()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(20)


def answers(port: int) -> bool:
    """Whether anything listens at a port."""
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        return True  # it wants TLS
    return True


@contextmanager
def nginx_with(servers: str, port: int, folder: Path) -> Iterator[None]:
    """nginx with these server blocks."""
    config = folder / "nginx.conf"
    paths = "".join(
        f"{each}_temp_path {folder}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n"
        f"events {{}} http {{ access_log off; {paths}\n{servers} }}"
    )
    command = [program("nginx"), "-c", str(config), "-p", str(folder), "-e", "stderr"]
    with running(command, port, folder):
        yield


@contextmanager
def set_up(kind: str, block: str, backend: str, folder: Path) -> Iterator[Proxied]:
    """A proxy with a block of the documentation; only ports and files are other ones."""
    port, at = free_port(), backend.removeprefix("http://")
    assert "127.0.0.1:7860" in block
    block = block.replace("127.0.0.1:7860", at)
    found = Proxied(port, "/ns" if "/ns" in block else "")
    if kind == "nginx":
        certificate, key = certificate_for(NAME, folder)
        for stated, ours in (
            ("listen 443", f"listen {port}"),
            (f"/etc/ssl/{NAME}.pem", certificate),
            (f"/etc/ssl/{NAME}.key", key),
        ):
            assert stated in block
            block = block.replace(stated, str(ours))
        with nginx_with(block, port, folder):
            yield found
        return
    config = folder / "Caddyfile"
    config.write_text(
        f"{{\nadmin off\nhttps_port {port}\nhttp_port {free_port()}\nlocal_certs\nskip_install_trust\n}}\n{block}"
    )
    command = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    with running(command, port, folder, HOME=str(folder), XDG_DATA_HOME=str(folder), XDG_CONFIG_HOME=str(folder)):
        yield found


def certificate_for(name: str, folder: Path) -> tuple[Path, Path]:
    """A certificate that nobody has signed, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command = [program("openssl"), "req", *asked, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a Chromium that finds the documentation's name here, and asks nothing about certificates."""
    with sync_playwright() as playwright:
        here = f"--host-resolver-rules=MAP {NAME} 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*QUIET, here])
        try:
            yield browser.new_context(ignore_https_errors=True).new_page()
        finally:
            browser.close()


@pytest.mark.parametrize(
    ("kind", "block"), BLOCKS, ids=[f"{kind}{'-prefix' * ('/ns' in block)}" for kind, block in BLOCKS]
)
def test_a_proxy_as_the_documentation_sets_it_up_serves_the_pages_and_passes_streams_on_at_once(
    tmp_path: Path, kind: str, block: str
) -> None:
    program("nginx" if kind == "nginx" else "caddy")
    with (
        serving(tmp_path / "data", *OPTIONS, NIGHTSCHOOL_OWNER_PASSWORD=PASSWORD) as (_, backend),
        set_up(kind, block, backend, tmp_path) as proxied,
    ):
        require_pieces(tmp_path / "data", proxied)
        with browser_page() as page:
            require_pages(page, proxied)


def require_pieces(data: Path, proxied: Proxied) -> None:
    """Fails unless a stream comes word by word."""
    store = Database(data)
    owner = users.find_user(store, OWNER)
    assert owner is not None
    headers = {"Authorization": f"Bearer {users.add_token(store, owner, 'test')}", "Host": f"{NAME}:{proxied.port}"}
    store.close()
    url = f"https://127.0.0.1:{proxied.port}{proxied.prefix}/v1/chat/completions"
    arrivals = []
    with (
        httpx.Client(verify=False, timeout=120) as client,
        client.stream("POST", url, json=STORY, headers=headers, extensions={"sni_hostname": NAME}) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        for piece in answer.iter_raw():
            arrivals.append((time.monotonic(), piece.count(b"data: ")))
    assert sum(count for _, count in arrivals) >= 50
    assert len(arrivals) >= 40, arrivals  # held back, they come as one to three
    assert arrivals[-1][0] - arrivals[0][0] > 0.3


def require_pages(page: Page, proxied: Proxied) -> None:
    """Fails unless every page works under the proxy's name, and nothing is asked outside of its prefix."""
    failed: list[str] = []
    elsewhere: list[str] = []

    def note(answer: Response) -> None:
        if answer.status >= 400:
            failed.append(f"{answer.status} {answer.url}")
        if not answer.url.startswith((proxied.url, "data:", "blob:")):
            elsewhere.append(answer.url)

    page.on("response", note)
    page.goto(proxied.url)
    expect(page).to_have_url(re.compile(re.escape(f"{proxied.url}login")))
    page.locator("#name").fill(OWNER)
    page.locator("#password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#main")).to_have_attribute("data-opened", "yes", timeout=30_000)
    cookies = {each["name"]: each for each in page.context.cookies()}
    assert {(each["path"], each["secure"]) for each in cookies.values()} == {(proxied.prefix or "/", True)}

    page.evaluate(
        "window.grown = []; new MutationObserver(() => {"
        " const said = [...document.querySelectorAll('[data-testid=bot]')].at(-1)?.textContent.length ?? 0;"
        " if (grown.at(-1) !== said) grown.push(said); })"
        ".observe(document.body, {subtree: true, childList: true, characterData: true})"
    )
    page.wait_for_timeout(300)
    page.locator("#box textarea").fill("Tell me a story about a lighthouse.")
    page.locator("#box textarea").press("Enter")
    page.wait_for_function("window.grown.length >= 10", timeout=REPLY_MS)
    page.locator("#stop").click()  # before its end: it came piece by piece
    expect(page.locator("#send")).to_be_visible(timeout=REPLY_MS)

    page.locator("#to-operate").click()
    expect(page.locator("#operate")).to_have_attribute("data-opened", "yes", timeout=30_000)
    page.locator("#to-chat").click()
    expect(page.locator("#chat [data-testid=bot]")).to_have_count(1, timeout=30_000)
    page.goto(f"{proxied.url}docs")
    expect(page.get_by_role("heading", level=1)).to_contain_text("HTTP API")
    page.goto(f"{proxied.url}account")
    page.locator("#to-chat").click()
    page.locator("#log-out").click()
    expect(page).to_have_url(f"{proxied.url}login")
    assert failed == []
    assert elsewhere == []


@pytest.mark.parametrize("host", ["", "proxy_set_header Host $host;"], ids=["as-it-comes", "without-the-port"])
def test_behind_a_proxy_that_changes_the_host_the_page_says_in_words_what_to_set(
    tmp_path: Path, tiny: Base, host: str
) -> None:
    port = free_port()
    with serving(tmp_path / "data", "--model", tiny.name) as (_, backend):
        block = f"server {{ listen {port}; location / {{ proxy_pass {backend}; {host} }} }}"
        with nginx_with(block, port, tmp_path), browser_page() as page:
            page.goto(f"http://127.0.0.1:{port}/")
            said = page.get_by_role("alert").filter(has_text="pass the Host header on unchanged")
            expect(said).to_be_visible(timeout=30_000)
            expect(said).to_contain_text("--trusted-proxy")


def test_the_documentation_has_a_block_for_each_and_the_example_of_events_is_what_is_sent() -> None:
    assert [kind for kind, _ in BLOCKS] == ["nginx", "nginx", "caddyfile", "caddyfile"]
    shown = re.findall(r"^data: (.*)$", (REPOSITORY / "docs" / "proxy.md").read_text(), re.MULTILINE)
    assert [set(json.loads(each)) for each in shown] == [{"from", "until", "text"}, {"until", "finish"}]
