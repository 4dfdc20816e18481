"""Conditional writes of an object store: a write that fails if the object exists already (`If-None-Match: *`).

The commits of Lance rely on them: without, of two writers at the same time one would undo what the other has stored.
Creating a table of Lance is not such a commit: of two processes at the same time, the second one can replace the table
of the first, so an index is created by the one process that could write an object.

Amazon S3, Google Cloud Storage, Azure, R2, MinIO and others have them; some stores ignore the condition.  Side effects:
writes and deletes small objects.
"""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cosplace.errors import ConfigError, PhotoIndexError

CREATING = "creating.lock"
MISSING = "Writing to object storage needs obstore. Install with: pip install 'cosplace[s3]'."


def check_conditional_writes(address: str) -> None:
    """Raise ConfigError if the store of an address has no conditional writes, PhotoIndexError if it does not answer.

    address: object storage, such as s3://bucket/name; file systems have what is needed.
    """
    if address.startswith(("file:", "memory:")):
        return
    if find_spec("obstore") is None:
        raise ConfigError(MISSING)
    obstore: Any = import_module("obstore")
    exceptions: Any = import_module("obstore.exceptions")

    name = f"probe-{uuid.uuid4().hex}"
    try:
        store = obstore.store.from_url(address)
        obstore.put(store, name, b"1", mode="create")
        try:
            obstore.put(store, name, b"2", mode="create")
            is_refused = False
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            is_refused = True
        finally:
            obstore.delete(store, name)
    except exceptions.NotSupportedError:
        is_refused = False
    except (exceptions.BaseError, OSError, ValueError) as error:
        raise PhotoIndexError(
            f"{address} cannot be written to ({' '.join(str(error).split())[:200]}). Check the address, the network "
            "and the credentials."
        ) from error
    if not is_refused:
        raise ConfigError(
            f"The object storage of {address} has no conditional writes (If-None-Match), which keep two writers apart. "
            "Use another one, such as Amazon S3, Google Cloud Storage, Azure or MinIO."
        )


@contextmanager
def creating_alone(address: str) -> Generator[None]:
    """Within: no other process creates an index at this address of object storage.

    Raises PhotoIndexError if another one does, and the errors of `check_conditional_writes`.
    """
    check_conditional_writes(address)
    obstore: Any = import_module("obstore")
    exceptions: Any = import_module("obstore.exceptions")
    store = obstore.store.from_url(address)
    try:
        obstore.put(store, CREATING, b"", mode="create")
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise PhotoIndexError(
            f"Another process is creating an index at {address}. Wait until it ends; if it was killed, delete "
            f"{address}/{CREATING}."
        ) from error
    try:
        yield
    finally:
        obstore.delete(store, CREATING)
