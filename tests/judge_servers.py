"""Servers on loopback that judges are asked at: one that says what a test wants, and a real one."""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_serve = pytest.mark.skipif(
    find_spec("fastapi") is None or find_spec("uvicorn") is None,
    reason="transformers serve needs fastapi and uvicorn: pip install 'transformers[serving]'",
)


def completion(text="A", top=None):
    """The body of a chat completion, with log probabilities of its first token if given."""
    listed = [{"token": token, "logprob": value, "bytes": None} for token, value in top or []]
    first = {"token": text, "logprob": 0.0, "bytes": None, "top_logprobs": listed}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [first]} if top else None,
    }
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stand-in",
        "choices": [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
    }


def opinion(body):
    """A verdict that depends on everything asked, so also on the order: P(second) in (0, 1)."""
    content = json.dumps(body["messages"])
    share = (hashlib.sha256(content.encode()).digest()[0] + 1) / 258
    top = [("A", math.log(1 - share)), ("B", math.log(share)), ("The", -9999.0)]
    return 200, completion("A", top)


class Server(ThreadingHTTPServer):
    """Answers with `answer(body)`, which returns a status and a body, or bytes to send as they are."""

    daemon_threads = True

    def __init__(self, answer, delay=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.delay = answer, delay
        self.lock = threading.Lock()
        self.bodies, self.authorizations, self.in_flight, self.most_in_flight = [], [], 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def asked(self):
        return len(self.bodies)

    def handle_error(self, request, client_address):
        """A client that has gone away is part of some tests."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.authorizations.append(self.headers.get("Authorization"))
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        time.sleep(server.delay)
        status, answer = server.answer(body)
        if isinstance(answer, dict) and answer.get("model") == "stand-in":
            answer["model"] = body["model"]  # as most servers do
        with server.lock:
            server.in_flight -= 1
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "20")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        """Stay silent."""


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


# --- the key ------------------------------------------------------------------------------------


class Served:
    """`transformers serve` with a tiny model on a port of loopback, in its own process."""

    def __init__(self, model, log):
        self.model, self.log, self.process = model, log, None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def start(self):
        command = [str(Path(sys.executable).with_name("transformers")), "serve", self.model]
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *place, "--dtype", "float32"],
                stdout=log,
                stderr=log,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            )
        wait_for(self.answers, seconds=240)

    def answers(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
            return False
        return True

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
