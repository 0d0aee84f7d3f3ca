"""Files that are whole or not there: written beside, synced, renamed."""

import hashlib
import io
import json
import os
import pathlib
import re
import tempfile

import numpy as np

from facedepth_jax.errors import FaceDepthError


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_local(path: str | os.PathLike):
    """Raises FaceDepthError for a bucket's address, of which pathlib would make a local folder `gs:`."""
    if found := re.match("[a-z][a-z0-9+.-]+:/", str(path)):
        raise FaceDepthError(
            f"{path} is an address ({found[0]}/...), no directory; files are synced and renamed here, which buckets "
            "cannot do: give a local directory, or mount the bucket through a cache, see docs/launching.md."
        )


def write_bytes(path: str | os.PathLike, content: bytes):
    """Writes a file, making its directory. Raises FaceDepthError if the place cannot be written or the disk is full."""
    check_local(path)
    path, temporary = pathlib.Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is 0600
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)
        raise FaceDepthError(f"{path} cannot be written: {error.strerror or error}.") from error


def remove_partial(folder: str | os.PathLike):
    """Removes what killed writes left in a folder and below it, where nobody else writes."""
    for path in pathlib.Path(folder).rglob(".*.partial"):
        if path.is_file():
            path.unlink()


def write_json(path: str | os.PathLike, content):
    """Plain values as JSON with sorted keys; NaN is an error."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike):
    """The values of a JSON file. Raises FaceDepthError if it is missing or no JSON."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise FaceDepthError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise FaceDepthError(f"{path} is not JSON ({error}).") from error


def sealed(content: dict) -> dict:
    """Plain JSON values and, as "sha256", the hash of what they say: of a file that holds hashes, but not its own."""
    content = json.loads(json.dumps(content, allow_nan=False))  # as it will be read
    return content | {"sha256": _json_sha256(content)}


def is_sealed(content: dict) -> bool:
    """False if sealed values were changed. True also where there is no "sha256": files from before it was written."""
    return "sha256" not in content or content["sha256"] == _json_sha256(content)


def _json_sha256(content: dict) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_npz(path: str | os.PathLike, content: dict[str, np.ndarray]):
    """Arrays by name, compressed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    write_bytes(path, buffer.getvalue())
