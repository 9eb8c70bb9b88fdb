"""Bodies to messages and back: JSON or msgpack by content type, nothing ambiguous let through.

Beyond what the decoder refuses by itself (wrong types, unknown fields, deep nesting, NaN in JSON,
lone surrogates, cut bodies), an object that has a key twice is refused: two readers of such a body
may see two requests.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeVar

import msgspec

from prerank.serving.messages import RankRequest
from prerank.serving.server.config import ServerConfig
from prerank.serving.server.protocol import Refusal

__all__ = ["Kind", "answer_kind", "body_kind", "check", "decode", "encode"]

T = TypeVar("T", bound=msgspec.Struct)
Kind = Literal["json", "msgpack"]

_TYPES: dict[str, Kind] = {
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
}
CONTENT_TYPES: dict[Kind, str] = {"json": "application/json", "msgpack": "application/msgpack"}
_KEY_END = re.compile(rb'"[ \t\r\n]*:')
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`")
_ENCODERS: dict[Kind, Any] = {"json": msgspec.json.Encoder(), "msgpack": msgspec.msgpack.Encoder()}
_DECODERS: dict[tuple[type[Any], Kind], Any] = {}
_LONGEST = 300


def body_kind(content_type: str, encoding: str = "") -> Kind:
    """Return how a body is encoded.

    Raises
    ------
    Refusal
        415: neither JSON nor msgpack, or compressed.

    Examples
    --------
    >>> body_kind("application/json; charset=utf-8")
    'json'
    """
    if encoding.strip().lower() not in ("", "identity"):
        raise Refusal(415, "compressed", "the body is compressed; send it as it is")
    name, _, options = content_type.lower().partition(";")
    kind = _TYPES.get(name.strip())
    charset = options.partition("charset=")[2].strip(' "')
    if kind is None or charset not in ("", "utf-8", "utf8"):
        raise Refusal(
            415,
            "unsupported_media_type",
            "content-type: expected application/json (in UTF-8) or application/msgpack",
        )
    return kind


def answer_kind(accept: str, kind: Kind) -> Kind:
    """Return how to answer: what is accepted by name, else the same way as the request.

    Examples
    --------
    >>> answer_kind("application/msgpack", "json"), answer_kind("*/*", "msgpack")
    ('msgpack', 'msgpack')
    """
    names = [part.partition(";")[0].strip() for part in accept.lower().split(",")]
    found = [_TYPES[name] for name in names if name in _TYPES]
    return kind if not found or kind in found else found[0]


def encode(value: Any, kind: Kind) -> bytes:
    """Encode an answer.

    Raises
    ------
    Refusal
        422: an integer that came in JSON and that msgpack cannot hold.
    """
    try:
        data: bytes = _ENCODERS[kind].encode(value)
    except OverflowError:
        raise Refusal(
            422, "bad_request", "an integer of the request has more than 64 bits; use a string"
        ) from None
    return data


def decode(body: bytes, kind: Kind, to: type[T]) -> T:
    """Decode a body.

    Raises
    ------
    Refusal
        400: no such encoding, or a key twice; 422: not the values that are expected, with place.
    """
    decoder = _DECODERS.get((to, kind))
    if decoder is None:
        module = msgspec.json if kind == "json" else msgspec.msgpack
        decoder = _DECODERS[to, kind] = module.Decoder(to)
    try:
        value: T = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refusal(422, "bad_request", _in_words(str(error))) from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ValueError, OverflowError):
        # Their messages may quote the body.
        raise Refusal(400, "malformed", f"the body is not valid {kind}") from None
    has_twice = _has_twice_json if kind == "json" else _has_twice_msgpack
    if has_twice(body, value):
        raise Refusal(400, "malformed", "an object of the body has the same key twice")
    return value


def check(request: RankRequest, config: ServerConfig, where: str = "") -> None:
    """Raise if a request is larger than what is served, or a number in it is none.

    Raises
    ------
    Refusal
        413: too many candidates or events; 422: a budget that is not finite.
    """
    ids = request.candidates.ids
    num = len(ids) // 8 if isinstance(ids, bytes) else len(ids)
    _at_most(num, config.max_candidates, f"{where}candidates.ids", "candidates")
    new = len(request.candidates.new)
    _at_most(new, config.max_candidates, f"{where}candidates.new", "items")
    events = 0
    for stream in request.history.values():
        if isinstance(stream, dict):
            events += max(map(len, stream.values()), default=0)
        elif isinstance(stream, list):
            events += len(stream)
    _at_most(events, config.max_events, f"{where}history", "events")
    if request.budget_ms is not None and not math.isfinite(request.budget_ms):
        raise Refusal(422, "bad_request", f"{where}budget_ms: expected a finite number")


def _at_most(num: int, limit: int, where: str, what: str) -> None:
    if num > limit:
        raise Refusal(413, "too_large", f"{where}: {num} {what}, at most {limit} are served")


def _in_words(text: str) -> str:
    """Turn ``Expected `int`, got `str` - at `$.k``` into ``k: expected int, got str``."""
    place = _PLACE.search(text)
    what = text[: place.start()] if place else text
    where = f"{place[1]}: " if place and place[1] else "body: "
    line = " ".join(f"{where}{what[:1].lower()}{what[1:]}".replace("`", "'").split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def _has_twice_json(body: bytes, value: msgspec.Struct) -> bool:
    # Colons behind quotes are at least as many as keys, which are at least as many as what was
    # decoded and is no default: where the ends agree there is no key twice.
    if len(_KEY_END.findall(body)) == _num_keys(value):
        return False
    try:
        json.loads(body, object_pairs_hook=_once)
    except ValueError:
        return True
    return False


def _once(pairs: Sequence[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError


def _num_keys(value: Any) -> int:
    """Return the number of keys of all objects in a value, defaults not counted."""
    if isinstance(value, dict):
        return len(value) + sum(_num_keys(v) for v in value.values() if isinstance(v, list | dict))
    if isinstance(value, list):
        # Lists of one message hold objects only or none.
        return sum(map(_num_keys, value)) if value and _is_object(value[0]) else 0
    if not isinstance(value, msgspec.Struct):
        return 0
    found = 0
    for name, default in _defaults(type(value)):
        inner = getattr(value, name)
        if inner != default:
            found += 1 + _num_keys(inner)
    return found


@cache
def _defaults(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    return [
        (f.name, f.default if f.default_factory is msgspec.NODEFAULT else f.default_factory())
        for f in msgspec.structs.fields(kind)
    ]


def _is_object(value: Any) -> bool:
    return isinstance(value, dict | msgspec.Struct)


def _has_twice_msgpack(body: bytes, value: msgspec.Struct) -> bool:
    plain = msgspec.msgpack.decode(body)
    # What gives the same bytes again has no key twice; other encoders use longer forms.
    return msgspec.msgpack.encode(plain) != body and _map_entries(body) != _plain_keys(plain)


def _plain_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_plain_keys, value.values()))
    return sum(map(_plain_keys, value)) if isinstance(value, list) else 0


# Opcodes 0xc0..0xdf: bytes of the length, bytes beside what the length says. None: no length.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_MANY = {0xDC: (2, False), 0xDD: (4, False), 0xDE: (2, True), 0xDF: (4, True)}


def _map_entries(body: bytes) -> int:
    """Return the entries of all maps of a valid msgpack body, as they are written."""
    at, found = 0, 0
    while at < len(body):
        code = body[at]
        at += 1
        if 0x80 <= code <= 0x8F:
            found += code & 0x0F
        elif 0xA0 <= code <= 0xBF:
            at += code & 0x1F
        elif code in _FIXED:
            at += _FIXED[code]
        elif code in _SIZED:
            width, more = _SIZED[code]
            at += width + more + int.from_bytes(body[at : at + width], "big")
        elif code in _MANY:
            width, is_map = _MANY[code]
            found += int.from_bytes(body[at : at + width], "big") if is_map else 0
            at += width
    return found
