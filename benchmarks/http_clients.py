"""Clients of a server, as a process of its own: one connection each, one request after another, answers kept.

    python benchmarks/http_clients.py HOST PORT PATH --photos FOLDER --clients 16 --seconds 20

Prints JSON: the number of answers in a period of the time given, and its seconds, all latencies and answers, and the
CPU seconds of this process.  The period begins after a tenth of the time: before, the first answers of all clients are
still on their way, so fewer than later arrive.
Clients share the cores with the server, so they do little: bodies are made before, and only the length of a response
is read.  Uses the standard library only.
"""

import argparse
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

BOUNDARY = "photo-0123456789"
TIMEOUT_S = 300
START_SHARE = 0.1  # of the time, in which answers do not count


def make_request(host: str, path: str, field: str, photo: Path) -> bytes:
    """Return a whole request with one photo in a form."""
    part = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{photo.name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = part.encode() + photo.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    header = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return header.encode() + body


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response: status and body."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65_536)
        if not part:
            raise ConnectionError("the server closed a connection")
        received += part
    header, _, body = received.partition(b"\r\n\r\n")
    lines = header.decode("latin-1").split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
    while len(body) < length:
        part = connection.recv(65_536)
        if not part:
            raise ConnectionError("the server closed a connection")
        body += part
    return int(lines[0].split()[1]), body


class Clients:
    """The clients of one run, and what they have received."""

    def __init__(self, address: tuple[str, int], requests: list[bytes], seconds: float, most: int | None) -> None:
        self.address, self.requests, self.seconds = address, requests, seconds
        self.num_left = float("inf") if most is None else most
        self.answers: list[tuple[int, float, float, int, bytes]] = []  # photo, begin, end, status, body
        self.errors: list[str] = []
        self.lock = threading.Lock()

    def run(self, count: int) -> float:
        """Send requests from this many clients until the time is over; return the seconds until the last answer."""
        self.started = time.perf_counter()
        threads = [threading.Thread(target=self._run_client, args=(number, count)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - self.started

    def _run_client(self, number: int, count: int) -> None:
        photo = number * len(self.requests) // count  # clients start at different photos
        try:
            with socket.create_connection(self.address, TIMEOUT_S) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._may_send():
                    begin = time.perf_counter()
                    connection.sendall(self.requests[photo])
                    status, body = read_response(connection)
                    self.answers.append((photo, begin, time.perf_counter(), status, body))
                    photo = (photo + 1) % len(self.requests)
        except OSError as error:
            self.errors.append(f"client {number}: {error}")

    def _may_send(self) -> bool:
        with self.lock:
            self.num_left -= 1
            return self.num_left >= 0 and time.perf_counter() - self.started < self.seconds


def main() -> None:
    """Run the clients and print what they have measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--field", default="files")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--requests", type=int, default=None, help="end after this many requests")
    arguments = parser.parse_args()
    photos = sorted(path for path in arguments.photos.iterdir() if path.suffix == ".jpg")
    requests = [make_request(arguments.host, arguments.path, arguments.field, photo) for photo in photos]
    clients = Clients((arguments.host, arguments.port), requests, arguments.seconds, arguments.requests)
    cpu = time.process_time()
    seconds = clients.run(arguments.clients)
    cpu = time.process_time() - cpu
    first, last = clients.started + START_SHARE * arguments.seconds, clients.started + min(seconds, arguments.seconds)
    report: dict[str, Any] = {
        "seconds": last - first,
        "num_in_time": sum(first < end <= last for _, _, end, _, _ in clients.answers),
        "latencies_s": [end - begin for _, begin, end, _, _ in clients.answers],
        "num_answers": len(clients.answers),
        "cpu_s": cpu,
        "statuses": sorted({status for *_, status, _ in clients.answers}),
        "errors": clients.errors,
        "answers": [(photos[photo].name, body.decode()) for photo, *_, body in clients.answers],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
