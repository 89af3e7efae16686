"""The lines of a text file: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 that begins with one.

Nothing else is guessed. What is not UTF-8 could be one of many encodings, and a wrong guess would silently change
letters. So it is an error that names the line, and says how to convert the file.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from rewardlm.errors import DataError

# Spreadsheets that save "Unicode text" write these. UTF-32's begins as UTF-16's does, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(number, text without its line end, whether it had one). \\n and \\r\\n end a line, U+2028 does not.

    Raises DataError as ``whole_lines`` does.
    """
    for number, text in whole_lines(path):
        yield number, text.removesuffix("\n").removesuffix("\r"), text.endswith("\n")


def whole_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text with its line end). A line in a quoted cell of a CSV keeps the end that it has.

    Raises DataError, which names the line, for a file that can't be opened, bytes that can't be read as text, and NUL.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with below; only opening may fail so)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected the path of a file that exists") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; expected a file") from None
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); expected a readable file") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not a file name ({error}); expected the path of a file") from None
    with file:
        head = file.peek(4)[:4]
        wide = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
        for number, text in enumerate(_wide(file, wide, path) if wide else _utf8(file, path), 1):
            if "\0" in text:
                raise DataError(
                    f"{path}, line {number}: a NUL character; expected plain text in UTF-8 (a file in another "
                    "encoding, such as UTF-16, must be saved as UTF-8)"
                )
            yield number, text


def _utf8(file: io.BufferedReader, path: Path) -> Iterator[str]:
    for number, data in enumerate(file, 1):
        try:
            # a byte order mark is what spreadsheets put before a UTF-8 csv
            yield data.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = data[error.start]
            letter = bytes([byte]).decode("cp1252", "replace")
            meant = f": in Windows-1252 it is {letter!r}" if letter.isalpha() or letter in "‘’“”–…" else ""
            raise DataError(
                f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x} at column {error.start + 1}){meant}; expected "
                "text in UTF-8: save it so, or iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
            ) from None


def _wide(file: io.BufferedReader, encoding: str, path: Path) -> Iterator[str]:
    """Read at once: these files come from spreadsheets, and an error can say on which line it is."""
    data = file.read()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding).count("\n") + 1
        raise DataError(
            f"{path}, line {line}: not {encoding.upper()}, although the file begins as such ({error.reason}); expected "
            "text in UTF-8: save it so"
        ) from None
    yield from io.StringIO(text, newline="\n")
