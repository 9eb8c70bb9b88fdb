"""The bearer token: where it may come from, and how it is compared."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import sys
from pathlib import Path

from prerank.errors import InputError

__all__ = ["Guard", "check_exposure", "is_loopback", "read_token"]

_LEAST = 16
_MOST = 4096


class Guard:
    """Says whether a request may be answered.

    Parameters
    ----------
    token : str
        What clients must present; empty: no token is asked for.

    Examples
    --------
    >>> guard = Guard("0123456789abcdef")
    >>> guard.admits("Bearer 0123456789abcdef"), guard.admits("Bearer 0"), guard.admits("")
    (True, False, False)
    """

    def __init__(self, token: str = "") -> None:
        self.is_open = not token
        self._digest = hashlib.sha256(token.encode()).digest()

    def admits(self, authorization: str) -> bool:
        """Compare the value of an ``Authorization`` header, in the same time for every one."""
        if self.is_open:
            return True
        scheme, _, token = authorization.partition(" ")
        # Digests are compared, so neither content nor length of the token shows in the time.
        found = hashlib.sha256(token.strip().encode("utf-8", "surrogatepass")).digest()
        return hmac.compare_digest(found, self._digest) and scheme.lower() == "bearer"


def read_token(source: str) -> str:
    """Read a token from a file, or from stdin (``-``): never from arguments, which others see.

    Raises
    ------
    InputError
        Not readable, shorter than 16 characters, not printable ASCII without blanks.
    """
    where = "--token-file -" if source == "-" else f"--token-file {source}"
    try:
        text = sys.stdin.read(_MOST + 1) if source == "-" else Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{where}: cannot be read: {reason}") from None
    token = text.strip()
    if not _LEAST <= len(token) <= _MOST:
        raise InputError(
            f"{where}: the token has {len(token)} characters, expected at least {_LEAST}; make "
            "one: head -c 32 /dev/urandom | base64 > FILE"
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{where}: the token has characters that no header can hold; use base64")
    return token


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str, *, waived: bool) -> None:
    """Raise if others than this machine could use the server without a token.

    Raises
    ------
    InputError
        Neither loopback, nor a token, nor waived.
    """
    if not (token or waived or is_loopback(host)):
        raise InputError(
            f"--host {host}: other machines reach it, so a token is needed; give --token-file "
            "FILE, or --waive-token if something before the server keeps strangers out"
        )
