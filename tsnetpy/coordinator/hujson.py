"""HuJSON, the syntax of policy files: JSON plus ``//`` and ``/* */`` comments and trailing commas.

Source: the "JWCC" description (JSON With Commas and Comments). :func:`standardize` blanks out what JSON does not have
and keeps every other character in place, so that the JSON decoder's byte offsets are offsets into the file.
"""

import re

import msgspec

from tsnetpy.base.errors import ConfigError

# One alternative per token that matters; a string is matched whole so that "//" inside it is left alone.
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/|,', re.DOTALL)
_BLANK = re.compile(r"[^\n]")


def standardize(text: str) -> str:
    """Return *text* as plain JSON of the same length: comments and trailing commas become spaces."""
    out: list[str] = []
    at = 0
    comma = -1  # index in `out` of a comma behind a value that only white space and comments have followed so far
    last = ""  # the character before, white space and comments left out
    for token in _TOKEN.finditer(text):
        between = text[at : token.start()]
        at = token.end()
        if comma >= 0 and (rest := between.lstrip()):
            if rest[0] in "]}":
                out[comma] = " "
            comma = -1
            last = rest.rstrip()[-1]
        elif rest := between.rstrip():
            last = rest[-1]
        out.append(between)
        word = token.group()
        if word == ",":
            comma = len(out) if last not in ("", "[", "{", ",", ":") else -1
            last = ","
            out.append(word)
        elif word[0] == "/":
            out.append(_BLANK.sub(" ", word))
        else:
            comma = -1
            last = '"'
            out.append(word)
    tail = text[at:]
    if comma >= 0 and tail.lstrip()[:1] in ("]", "}"):
        out[comma] = " "
    out.append(tail)
    return "".join(out)


def decode(text: str) -> object:
    """Return the value in *text*.

    Raises:
        ConfigError: not HuJSON; the message names line and column.
    """
    plain = standardize(text)
    try:
        value: object = msgspec.json.decode(plain)
    except msgspec.DecodeError as error:
        where = re.search(r"\(byte (\d+)\)", str(error))
        if where is None:
            raise ConfigError(f"not valid HuJSON: {error}") from None
        before = plain.encode()[: int(where.group(1))].decode(errors="replace")
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1) + 1
        reason = str(error).split(" (byte", maxsplit=1)[0]
        raise ConfigError(f"not valid HuJSON at line {line}, column {column}: {reason}") from None
    return value
