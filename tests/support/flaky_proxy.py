"""A proxy before a server on loopback that answers some requests as a bad day in the cloud does."""

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


@contextmanager
def flaky_proxy(
    target_port: int, share: float, seed: int, stall_s: float = 0
) -> Iterator[tuple[str, Counter[str]]]:
    """Forward to 127.0.0.1:target_port, but spoil a share of the answers.

    Args:
        stall_s: where not 0, some requests get no answer for so long, then a closed connection.
    Yields:
        Its URL, and how often each fault was injected.
    """
    rng, lock = random.Random(seed), threading.Lock()
    injected: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                faults = ("500", "503", "429", "cut off", "short", *["stall"][: stall_s > 0])
                fault = rng.choice(faults) if rng.random() < share else ""
                if fault == "short" and self.command != "GET":
                    fault = "500"
                injected[fault] += 1
            if fault.isdigit():
                self.answer(int(fault), [], b"")
                return
            if fault == "stall":
                time.sleep(stall_s)
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection("127.0.0.1", target_port, timeout=30)
            headers = {name: value for name, value in self.headers.items() if name != "Connection"}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            data = response.read()
            upstream.close()
            kept = [(n, v) for n, v in response.getheaders() if n.lower() not in HOP_BY_HOP]
            if self.command == "HEAD":
                kept.append(("Content-Length", response.getheader("Content-Length") or "0"))
            if fault == "cut off" and self.command == "GET":  # less than the header promises
                self.answer(response.status, kept, data[: len(data) // 2], len(data))
                self.close_connection = True
            elif fault == "short":  # a header that lies as well
                self.answer(response.status, kept, data[: len(data) // 2])
            else:
                self.answer(response.status, kept, data)

        def answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            data: bytes,
            promised: int | None = None,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                length = len(data) if promised is None else promised
                self.send_header("Content-Length", str(length))
            elif not any(name == "Content-Length" for name, _ in headers):
                self.send_header("Content-Length", "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", injected
    finally:
        server.shutdown()
        server.server_close()
