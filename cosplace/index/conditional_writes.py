"""Conditional writes of an object store: a write that fails if the object exists already (`If-None-Match: *`).

The commits of Lance rely on them: without, of two writers at the same time one would undo what the other has stored.
Amazon S3, Google Cloud Storage, Azure, R2, MinIO and others have them; some stores ignore the condition.  Side effects:
writes and deletes a small object.
"""

import uuid
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from cosplace.errors import ConfigError, PhotoIndexError

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
