"""A foreign model server for tests: a real HTTP server that says what vLLM 0.32 says, or fails as one may.

It has no model: every token is the same, and as likely. What vLLM itself does is tested with vLLM (`test_vllm`).
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from assistant.models.base_model import Base

SAID = 4093  # the one token that it says
LOGPROB = -1.0


@dataclass
class Foreign:
    """What the server serves and how it behaves; a test changes it while it runs."""

    base: Base
    tokenizer: Any
    behaves: str = "well"  # or: dies, errs, babbles, hangs, is busy
    has_lora: bool = True
    tells: float = LOGPROB  # the log-prob of a drawn token; of a given one it is always LOGPROB
    spoils: int = 0  # added to each token id that it makes of a text
    key: str | None = None
    loaded: dict[str, str] = field(default_factory=dict)  # adapters: name and path
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of the completions asked for
    hung_up: threading.Event = field(default_factory=threading.Event)  # a reader went away in mid-reply
    url: str = ""


class Answering(BaseHTTPRequestHandler):
    """One connection."""

    def __init__(self, foreign: Foreign, *of_server: Any) -> None:
        self.foreign = foreign
        super().__init__(*of_server)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/health":
            self.say(200, {})
        elif self.foreign.key and self.headers["Authorization"] != f"Bearer {self.foreign.key}":
            self.say(401, {"error": "Unauthorized"})
        else:
            path = str(self.foreign.base.path)
            cards = [{"id": path, "root": path, "parent": None, "max_model_len": 512}]
            cards += [{"id": name, "root": at, "parent": path} for name, at in self.foreign.loaded.items()]
            self.say(200, {"object": "list", "data": cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers = {
            "/tokenize": self.tokenize,
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            "/v1/completions": self.complete,
        }
        answers[self.path](body)

    def say(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def tokenize(self, body: dict[str, Any]) -> None:
        ids = self.foreign.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]
        self.say(200, {"tokens": [each + self.foreign.spoils for each in ids]})

    def load(self, body: dict[str, Any]) -> None:
        if not self.foreign.has_lora:
            self.say(404, {"detail": "Not Found"})
        elif body["lora_path"].startswith("/nowhere"):
            self.say(404, {"error": {"message": f"No adapter found for {body['lora_path']}"}})
        else:
            self.foreign.loaded[body["lora_name"]] = body["lora_path"]
            self.say(200, {})

    def unload(self, body: dict[str, Any]) -> None:
        self.say(200 if self.foreign.loaded.pop(body["lora_name"], None) else 404, {})

    def complete(self, body: dict[str, Any]) -> None:
        self.foreign.bodies.append(body)
        if body["model"] not in (str(self.foreign.base.path), *self.foreign.loaded):
            self.say(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif self.foreign.behaves == "is busy":
            self.say(503, {"error": {"message": "The engine is currently busy."}})
        elif body["stream"]:
            self.stream()
        elif "logprob_token_ids" in body:
            after = {f"token_id:{each}": LOGPROB for each in body["logprob_token_ids"]}
            said = {"tokens": [], "token_logprobs": [], "top_logprobs": [after]}
            self.say(200, {"choices": [{"index": at, "logprobs": said} for at in range(len(body["prompt"]))]})
        else:
            self.say(200, {"choices": [self.part(body["max_tokens"], "length")]})

    def part(self, tokens: int, finish: str | None = None) -> dict[str, Any]:
        name = f"token_id:{SAID}"
        said = {
            "tokens": [name] * tokens,
            "token_logprobs": [self.foreign.tells] * tokens,
            "top_logprobs": [{name: self.foreign.tells}] * tokens,
        }
        return {"index": 0, "text": "user" * tokens, "logprobs": said, "finish_reason": finish}

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.event({"choices": [self.part(1)]})
        self.event({"choices": [self.part(2)]})
        if self.foreign.behaves == "errs":
            self.event({"error": {"message": "out of memory", "code": 500}})
        elif self.foreign.behaves == "babbles":
            self.event({"choices": [{"index": 0, "text": "hello"}]})
        elif self.foreign.behaves == "hangs":
            self.until_hung_up()
        elif self.foreign.behaves == "well":
            self.event({"choices": [self.part(1, "stop")]})
            self.event({"choices": [], "usage": {"total_tokens": 9}})
            self.wfile.write(b"data: [DONE]\n\n")

    def event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def until_hung_up(self) -> None:
        with suppress(OSError):
            while True:
                self.wfile.write(b": still thinking\n\n")
                time.sleep(0.02)
        self.foreign.hung_up.set()


@contextmanager
def serving(foreign: Foreign, port: int = 0) -> Iterator[Foreign]:
    """The server, running at `foreign.url`."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Answering, foreign))
    server.daemon_threads = True
    foreign.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield foreign
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
