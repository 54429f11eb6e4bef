"""Chat-completions servers on loopback: `llmock` and `transformers serve` of others, and a recorder of ours."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LLMOCK = "from llmock.cli import app; app()"
SERVE = "from transformers.cli.transformers import main; main()"
START_S = 120


def fetch(url: str, body: object | None = None, *, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read() or b"null")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(arguments: list[str], port: int, *, log: Path) -> Iterator[str]:
    """A server process, from when it answers `/health` until the block ends."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            _await(process, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"no answer from {url}: {log.read_text()[-2000:]}")


@dataclass
class Llmock:
    """A running `llmock serve`, scripted over its own interface."""

    root: str

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def script(self, *behaviors: dict[str, Any]) -> None:
        fetch(f"{self.root}/_llmock/scenario", {"behaviors": list(behaviors)})

    def requests(self) -> list[dict[str, Any]]:
        return fetch(f"{self.root}/_llmock/requests")["requests"]

    def verdict(self) -> dict[str, Any]:
        return fetch(f"{self.root}/_llmock/verdict")

    def reset(self) -> None:
        fetch(f"{self.root}/_llmock/reset", {})


@contextmanager
def llmock_server(log: Path, *options: str) -> Iterator[Llmock]:
    port = free_port()
    with served([sys.executable, "-c", LLMOCK, "serve", "--port", str(port), *options], port, log=log) as root:
        yield Llmock(root)


@dataclass
class Recorder:
    """A server that keeps every request as it came, and answers as it is told.

    Attributes:
        answer: From the number of the request and its body to status, headers and JSON.
        seen: (path, headers by lower-case name, body as bytes) of each request.
    """

    answer: Callable[[int, Any], tuple[int, dict[str, str], Any]]
    url: str = ""
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.seen]


def said(text: str | None, *, finish: str = "stop", **message: Any) -> tuple[int, dict[str, str], Any]:
    """A chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320}
    return 200, {}, {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice],
                     "usage": usage}  # fmt: skip


def failed(status: int, message: str, *, headers: dict[str, str] | None = None, **error: Any) -> Any:
    """An error as OpenAI words it."""
    return status, headers or {}, {"error": {"message": message, **error}}


@contextmanager
def recorder(answer: Callable[[int, Any], Any]) -> Iterator[Recorder]:
    record = Recorder(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with record.lock:
                number = len(record.seen)
                record.seen.append((self.path, {n.lower(): v for n, v in self.headers.items()}, body))
            status, headers, value = record.answer(number, json.loads(body))
            payload = json.dumps(value).encode()
            try:
                self.send_response(status)
                for name, text in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except ConnectionError:
                self.close_connection = True  # the client did not wait

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        record.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield record
        finally:
            server.shutdown()
            thread.join()


def tiny_llava(folder: Path) -> Path:
    """A LLaVA of 1 MB with random weights, built from configuration: it looks at pictures, and says nonsense."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["axial slice of the liver, dark and bright areas"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=len(fast),
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    )
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), fast,
        patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@contextmanager
def transformers_serve(model: Path, log: Path) -> Iterator[str]:
    """`transformers serve` for one model on the CPU; gives the address for clients."""
    port = free_port()
    arguments = [sys.executable, "-c", SERVE, "serve", str(model), "--port", str(port), "--device", "cpu"]
    with served(arguments, port, log=log) as root:
        yield f"{root}/v1"
