"""Write files atomically (temporary file, fsync, rename); hashes and JSON."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import socket
import uuid

import numpy as np

from facedepth_jax.errors import FaceDepthError


def path(text: str) -> pathlib.Path:
    """Parse a path of a command line, where no shell puts the home for ~ in --out=~/x. Raises ValueError if empty."""
    if not text:
        raise ValueError("a path is empty")
    return pathlib.Path(os.path.expanduser(text))


def sha256(path: str | os.PathLike) -> str:
    """Hash a file's bytes: SHA-256, hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_local(path: str | os.PathLike):
    """Raise FaceDepthError for a bucket's address, of which pathlib would make a local folder `gs:`."""
    if found := re.match("[a-z][a-z0-9+.-]+:/", str(path)):
        raise FaceDepthError(
            f"{path} is an address ({found[0]}/...), no directory; files are synced and renamed here, which buckets "
            "cannot do: give a local directory, or mount the bucket through a cache, see docs/launching.md."
        )


@contextlib.contextmanager
def locked(folder: str | os.PathLike):
    """Hold the lock of a directory, which is made, and removed again if nothing else has come into it.

    The lock is the kernel's, on a file in the directory: it ends with the process, also with a killed one. Raises
    FaceDepthError if another process holds it, or if nothing can be written there.
    """
    folder = pathlib.Path(folder)
    made, path = not folder.exists(), folder / "lock"
    with contextlib.ExitStack() as stack:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(path, "a+", encoding="utf-8"))
            except OSError as error:
                raise FaceDepthError(f"{folder} cannot be written: {error.strerror or error}.") from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise FaceDepthError(
                    f"{folder} is in use by another process ({file.read() or 'an unknown one'}): wait until it has "
                    "ended, or give another directory."
                ) from None
            except OSError:  # a file system without locks: better none than no run
                pass
            with contextlib.suppress(FileNotFoundError):  # whoever held it may have removed the file since
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
        try:
            with contextlib.suppress(OSError):  # a full disk, say: the text is for people alone
                file.truncate(0)
                print(f"{os.getpid()} on {socket.gethostname()}", end="", file=file, flush=True)
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()


@contextlib.contextmanager
def atomically(path: str | os.PathLike):
    """Yield a free path next to `path` for a file or a directory; sync it and rename it to `path`, or remove it.

    A file replaces the one that is there; a directory must find nothing or an empty one. Raises OSError.
    """
    path = pathlib.Path(path)
    # Not by process id: it is not unique on a directory that several machines share.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        for file in [*partial.rglob("*"), partial] if partial.is_dir() else [partial]:
            _sync(file)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # on a read-only disk the clean-up fails too, and would hide what failed
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        raise


def _sync(path: pathlib.Path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str | os.PathLike, content: bytes):
    """Write a file, making its directory. Raises FaceDepthError if the place cannot be written or the disk is full."""
    check_local(path)
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise FaceDepthError(f"{path} cannot be written: {error.strerror or error}.") from error


def remove_partial(folder: str | os.PathLike):
    """Remove the remains of killed writes in a folder and below it, where no other process writes."""
    for path in pathlib.Path(folder).rglob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content):
    """Write plain values as JSON with sorted keys; NaN is an error."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike):
    """Read the values of a JSON file. Raises FaceDepthError if it is missing or not JSON."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise FaceDepthError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise FaceDepthError(f"{path} is not JSON ({error}).") from error


def sealed(content: dict) -> dict:
    """Add to plain JSON values, as "sha256", a hash of them, so that a file can be checked by itself."""
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
    return content | {"sha256": _json_sha256(content)}


def is_sealed(content: dict) -> bool:
    """Check that sealed values are as they were written."""
    return content.get("sha256") == _json_sha256(content)


def _json_sha256(content: dict) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_npz(path: str | os.PathLike, content: dict[str, np.ndarray]):
    """Write arrays by name, compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    write_bytes(path, buffer.getvalue())


def write_npy(path: str | os.PathLike, array: np.ndarray):
    """Write an array."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
