"""Files that are whole or not there."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fastcollect.support.errors import ConfigError


def file_name(text: str) -> str:
    """The text with "_" for what a file's name should not hold."""
    return re.sub(r"[^\w.-]", "_", text)


def write_file(file: Path, content: str | bytes | Callable[[BinaryIO], None]) -> None:
    """Write all of the content, or of what the function writes, durably, or leave the file as it was.

    Folders above it are made. Raises ConfigError naming the file.
    """
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise ConfigError([f"{str(file)!r} cannot be written: {error.strerror or error}"]) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    # The file is whole either way; this makes its name survive a power failure too.
    with contextlib.suppress(OSError):
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
