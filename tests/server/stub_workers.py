"""Small workers for tests of the process that starts them: they import neither torch nor an index.

    python -m tests.server.stub_workers NUM_WORKERS [PROBLEM]

Prints the address once all workers serve.  A worker answers each connection with its number and its process id.  With a
PROBLEM, worker 2 reports it instead; the program prints the error and exits with 2.
"""

import logging
import os
import signal
import socket
import sys

from cosplace.errors import CosPlaceError
from cosplace.server.settings import ServerSettings
from cosplace.server.workers import Worker, serve_with_workers


def run_worker(worker: Worker, settings: ServerSettings, problem: str) -> None:
    worker.prepare()
    if problem and worker.number == 2:
        worker.report(problem)
        return
    assert settings.workers == 1 and not {"torch", "numpy"} & set(sys.modules)
    with worker.listener as listener:
        listener.listen()
        signal.signal(signal.SIGTERM, lambda *_: listener.shutdown(socket.SHUT_RDWR))  # ends accept
        worker.report()
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                texts = worker.number, os.getpid(), os.environ["OMP_NUM_THREADS"], *worker.problems()
                connection.sendall(" ".join(map(str, texts)).encode())


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = ServerSettings(port=0, workers=int(sys.argv[1]))
    try:
        serve_with_workers(run_worker, settings, sys.argv[2:3] or [""], announce=show)
    except CosPlaceError as error:
        show(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
