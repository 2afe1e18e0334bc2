"""A real OpenAI-compatible server on loopback: models that follow rules, or another server's, and faults on demand."""

import contextlib
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

Messages = list[dict[str, str]]
Answer = Callable[[str, Messages], str]
WORD_SECONDS = 0.03
"""Between two words of a stream."""
HANG = 1.0
"""Seconds that a hanging request is kept waiting, unless the test says otherwise."""


@dataclass
class Served:
    """A running server and what it was sent."""

    url: str
    keys: list[str] = field(default_factory=list)
    """Authorization header of each request."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    """Requests answered in full, which a provider would charge for."""
    usages: list[dict[str, Any]] = field(default_factory=list)
    """What the answers given in full, and at once, say they used, and the `model`."""
    charged: list[dict[str, Any]] = field(default_factory=list)
    """What the provider charges for: of every answer but streams, those that broke off on the way included."""
    faults: list[str] = field(default_factory=list)
    """The faults that requests met."""


@contextmanager
def openai_server(
    answer: Answer | str,
    faults: Sequence[str] = (),
    *,
    refused: str = "",
    hang: float = HANG,
    word_seconds: float = WORD_SECONDS,
    retry_after: str = "0.2",
    refuses: str = "",
    shaped: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body,
) -> Iterator[Served]:
    """Serve /chat/completions on a free port; request n meets fault n of the list, an empty one or none is answered.

    Faults: `429`, `401`, `404`, `500`, `quota`, `hang`, `half` (the body breaks off), `garbage` (no JSON),
    `drip` (a byte now and then, for ever). `answer` is a rule, or the
    address of another server, which then answers what meets no fault. A request that holds `refused` meets a 401.
    `shaped` changes the body of each answer that is no stream. The server `refuses` a `system` turn, or a `stream`;
    `stream silently` answers whole.
    """
    served, number, lock, ended = Served(""), count(), threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(raw)
            with lock:
                n = next(number)
                fault = "401" if refused and refused in raw.decode() else faults[n] if n < len(faults) else ""
                served.bodies.append(dict(body))
                served.keys.append(self.headers["Authorization"] or "")
                served.faults += [fault] if fault else []
            if fault in ("429", "401", "404", "500", "quota"):
                error = {"message": f"refused {self.headers['Authorization']} because of this", "type": "test"}
                error |= {"code": "insufficient_quota"} if fault == "quota" else {}
                wait = {"Retry-After": retry_after} if fault == "429" else {}
                return self.reply(429 if fault == "quota" else int(fault), json.dumps({"error": error}).encode(), wait)
            if fault == "hang":
                time.sleep(hang)
                self.close_connection = True
                return None
            unwanted = {"system": body["messages"][0]["role"] == "system", "stream": body.get("stream")}
            if unwanted.get(refuses):
                error = {"message": f"{refuses} role not supported", "type": "invalid_request_error"}
                return self.reply(400, json.dumps({"error": error}).encode())
            if refuses == "stream silently":
                body["stream"] = False
            if fault == "drip":
                return self.drip()
            if fault == "garbage":
                return self.reply(200, b"<html>busy</html>")
            pieces = relayed(answer, raw) if isinstance(answer, str) else spoken(answer, body, word_seconds)
            if body.get("stream"):
                return self.stream(pieces, broken=fault == "half")
            whole = json.loads(b"".join(pieces))
            usage = whole["usage"] | {"model": body["model"]}
            said = json.dumps(shaped(whole)).encode()
            with lock:
                served.charged.append(usage)
            if fault == "half":
                return self.reply(200, said[: len(said) // 2], length=len(said))
            with lock:
                served.answered += 1
                served.usages.append(usage)
            return self.reply(200, said)

        def drip(self) -> None:
            """Send a byte of the answer now and then, for as long as somebody reads."""
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    self.wfile.write(b" ")

        def stream(self, pieces: Iterator[bytes], *, broken: bool) -> None:
            """Send the answer event by event, in chunks, so that a broken one does not pass for whole."""
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")
            self.end_headers()
            for n, piece in enumerate(pieces):
                if broken and n:
                    return
                if piece.startswith(b"data: {") and json.loads(piece[6:]).get("usage"):
                    # The last of an answer.
                    with lock:
                        served.answered += 1
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int = 0) -> None:
            self.send_response(status)
            fixed = {
                "Content-Type": "application/json",
                "Content-Length": str(length or len(body)),
                "Connection": "close",
            }
            for name, value in (fixed | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        ended.set()
        server.shutdown()
        server.server_close()


def spoken(answer: Answer, body: dict[str, Any], word_seconds: float) -> Iterator[bytes]:
    """Yield the answer of a rule: the whole body, or its events word by word."""
    text = answer(body["model"], body["messages"])
    said = completion(body, text)
    if not body.get("stream"):
        yield said
        return
    for event in events(json.loads(said), text):
        yield f"data: {event}\n\n".encode()
        time.sleep(word_seconds)


def relayed(url: str, raw: bytes) -> Iterator[bytes]:
    """Yield the answer of the server at `url`, line by line as it comes."""
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", raw, headers)) as response:
        yield from response


def completion(body: dict[str, Any], text: str) -> bytes:
    """Return the answer in OpenAI's form; a token is a word here."""
    words = sum(len(m["content"].split()) for m in body["messages"])
    usage = {
        "prompt_tokens": words,
        "completion_tokens": len(text.split()),
        "total_tokens": words + len(text.split()),
        "prompt_tokens_details": {"cached_tokens": words // 2},
    }
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    said = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
    return json.dumps(said | {"usage": usage}).encode()


def events(said: dict[str, Any], text: str) -> Iterator[str]:
    """Yield the answer as OpenAI streams it: the words, the end, the usage."""
    base = {k: said[k] for k in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    for n, word in enumerate(re.findall(r"\s*\S+", text)):
        delta = {"content": word} | ({} if n else {"role": "assistant"})
        yield json.dumps(base | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield json.dumps(base | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield json.dumps(base | {"choices": [], "usage": said["usage"]})
    yield "[DONE]"


def asked_fields(messages: Messages) -> list[str]:
    """Return the output fields that DSPy's chat frame asks for in the last turn."""
    request = messages[-1]["content"].rpartition("Respond with")[2]
    return re.findall(r"\[\[ ## (\w+) ## \]\]", request.partition("and then ending")[0])


def in_chat_frame(values: dict[str, str]) -> str:
    """Return field values as DSPy's chat frame reads them."""
    return "\n\n".join(f"[[ ## {k} ## ]]\n{v}" for k, v in values.items()) + "\n\n[[ ## completed ## ]]"


def obedient_student(messages: Messages) -> str:
    """Answer with the word of the text that the instructions ask for; without any, with the first."""
    told = " ".join(m["content"] for m in messages if m["role"] == "system")
    words = re.findall(r"text: (.*)", messages[-1]["content"])[-1].split()
    return words[-1] if "last word" in told else words[0][0] if "first letter" in told else words[0]


class Teacher:
    """Propose instructions by rule: the first of its ideas that explains the examples in sight, else one by one."""

    def __init__(self, *ideas: str) -> None:
        self.ideas, self.asked = ideas, 0

    def __call__(self, messages: Messages) -> str:
        fields, prompt = asked_fields(messages), " ".join(m["content"] for m in messages)
        if fields == ["label"]:
            return in_chat_frame(
                {"label": re.findall(r"\[\[ ## text ## \]\]\n(.*)", messages[-1]["content"])[-1].split()[-1]}
            )
        idea = self.ideas[self.asked % len(self.ideas)]
        if any("instruction" in f or "rules" in f for f in fields):
            self.asked += 1
        pairs = re.findall(r"'text': '([a-z ]+)'.*?right label is '(\w+)'", prompt, re.S)
        if pairs and all(text.split()[-1] == right for text, right in pairs):
            idea = next((i for i in self.ideas if "last word" in i), idea)
        return in_chat_frame({f: idea if "instruction" in f or "rules" in f else "Nothing to add." for f in fields})
