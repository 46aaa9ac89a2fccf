"""What stands for the services of others: each is a thread of the test's own process."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Pages:
    """A site that takes a while for each page, and for the first hundred a second."""

    def __init__(self):
        self.busy = 0
        self.asked = []

    async def answer(self, reader, writer):
        page = int(await reader.readline())
        self.asked.append(page)
        self.busy += 1
        await asyncio.sleep(1 if page < 100 else 0.05)
        self.busy -= 1
        writer.write(f"{page}\n".encode())
        await writer.drain()
        writer.close()

    @contextmanager
    def served(self):
        """Its port."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self.answer, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            loop.close()


class Bank:
    """Takes money, once for each key, and remembers who asked when."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.busy = self.most = 0
        self.asked = []  # moments
        self.charged = {}  # what was taken, by its key
        self._lock = threading.Lock()

    def charge(self, key, what):
        with self._lock:
            self.asked.append(time.monotonic())
            self.busy += 1
            self.most = max(self.most, self.busy)
        time.sleep(self.seconds)
        with self._lock:
            self.busy -= 1
            assert self.charged.setdefault(key, what) == what
        return f"receipt-{key}"

    def handler(self):
        bank = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receipt = bank.charge(self.headers["Idempotency-Key"], json.loads(body))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"receipt": receipt}).encode())

            def log_message(self, *_):
                """Not in the way of what pytest prints."""

        return Handler

    @contextmanager
    def served(self):
        """Its URL."""
        with ThreadingHTTPServer(("127.0.0.1", 0), self.handler()) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_port}/charges"
            finally:
                server.shutdown()
                thread.join()
