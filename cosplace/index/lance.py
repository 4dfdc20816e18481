"""Lance: open the tables of an address, and say in an error what to do.

Side effects: `connect` sets environment variables that keep Lance from printing, and bound its memory.
"""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from cosplace.errors import CosPlaceError, IndexInUseError, MissingIndexError, PhotoIndexError, StorageError
from cosplace.index.file_checksums import damaged, is_local

# Of the first request to object storage, so that a store that does not answer is reported within about a minute.
FIRST_REQUEST = {"timeout": "10s", "client_max_retries": "0"}
# Bytes that each scan reads ahead, also when files are joined; by default, Lance reads 2 GiB ahead.
READ_AHEAD_BYTES = 128 * 1024 * 1024
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")


def connect(address: str, *, is_first: bool = False) -> Any:
    """Open the tables of an address, a folder or object storage.  is_first: do not wait long for an answer."""
    if is_local(address) and CONTROL_CHARACTER.search(address):
        raise PhotoIndexError(
            f"LanceDB cannot open {address!r}: a folder has a control character in its name. Rename that folder."
        )
    # Otherwise it prints a warning about every new table.
    os.environ.setdefault("LANCEDB_LOG", "error")
    os.environ.setdefault("LANCE_LOG", "error")
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", str(READ_AHEAD_BYTES))
    # Imported late: it takes a second and starts threads.
    import lancedb

    return lancedb.connect(address, storage_options=FIRST_REQUEST if is_first and not is_local(address) else None)


def record_text(records: Any, key: str) -> str | None:
    """The JSON text of a key in the table of records; None if there is none."""
    rows = records.search().where(f"key = '{checked_key(key)}'").select(["json"]).to_arrow()
    return rows["json"][0].as_py() or "" if len(rows) else None  # a missing value is damage, like an empty text


def checked_key(key: str) -> str:
    """The key of a record, which must be safe in an expression."""
    assert key.replace("_", "").replace("-", "").isalnum(), key
    return key


# --- errors ----------------------------------------------------------------------------------------------------------


class OutdatedError(MissingIndexError):
    """Files of the version that is read are gone: a writer has removed them, or they are missing.  Read again."""


PANICS = ("RustPanic", "PanicException")  # raised by failed assertions in Lance; some are not an Exception
RUST_SOURCE = re.compile(r",? ?\S*\.rs:\d+(:\d+)?|/\S*/\.cargo/\S*|, location: \S+")
# A damaged file is no bug of Lance or DataFusion, whatever they say.
BUG_REPORT = re.compile(
    r"Encountered internal error\. Please file a bug report at \S+ ?|\W*This issue was likely caused by a bug in .*"
)


@contextmanager
def translated_errors(address: str) -> Generator[None]:
    """Turn errors of Lance into errors that say what to do."""
    try:
        yield
    except (CosPlaceError, GeneratorExit):
        raise
    except BaseException as error:
        is_of_arrow = type(error).__module__.startswith("pyarrow")
        if not (isinstance(error, OSError | RuntimeError | ValueError) or is_of_arrow or is_panic(error)):
            raise
        raise _translate(address, error) from error


def is_panic(error: BaseException) -> bool:
    """Whether an exception is a failed assertion in Lance."""
    return type(error).__name__ in PANICS


def _translate(address: str, error: BaseException) -> CosPlaceError:
    text = RUST_SOURCE.sub("", BUG_REPORT.sub("", " ".join(str(error).split())))
    if "os error 28" in text or "No space left" in text or "os error 122" in text:
        return StorageError(
            f"{address}: no space left on the disk, or in the folder for temporary files. Free some space and run the "
            "command again; all photos so far are kept."
        )
    if "os error 27" in text or "File too large" in text:
        return StorageError(f"{address}: a file is larger than allowed here (`ulimit -f`). Raise that limit.")
    if "Incompatible transaction" in text or "ommit conflict" in text:
        return IndexInUseError(
            f"{address} was taken over by another writer; photos stored before are kept. Run the command again."
        )
    if "Permission denied" in text or "Read-only" in text:
        return StorageError(f"No permission to read or write {address}. Check its permissions, or use another address.")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return StorageError(f"{address} is a file, not a folder. Choose another address.")
    if not is_local(address) and (found := re.search(REMOTE_PROBLEMS, text, re.IGNORECASE)):
        return PhotoIndexError(
            f"{address} cannot be reached ({found[0].lower()}). Check the address, the network and the credentials."
        )
    if isinstance(error, FileNotFoundError) or "not found" in text.lower() or "No such file" in text:
        missing = re.search(r"(?:data|_indices|_deletions|_versions)/[\w./-]+", text)
        part = f"{missing[0]} is missing" if missing else "a file is missing"
        return OutdatedError(f"{address} is not complete: {part}. Run `cosplace index verify {address}`.")
    if is_panic(error):
        return damaged(address, "a file cannot be decoded")
    if is_local(address) and "os error" not in text:
        return damaged(address, text[:200].rstrip(". "))
    return PhotoIndexError(
        f"Cannot read or write {address}: {text[:200].rstrip('. ')}. Check the address and its permissions."
    )


REMOTE_PROBLEMS = (
    r"dns error|failed to lookup|connection refused|timed out|timeout|connect error|error sending request|"
    r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|Forbidden|Unauthorized|NoSuchBucket|credentials?"
)
