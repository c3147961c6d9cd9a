"""The password file: one ``user:salt:hash`` a line, salt and scrypt hash in hexadecimal digits."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["hash_password", "read_passwords", "verify"]

SALT_BYTES, HASH_BYTES = 16, 32
# Costs 16 MB and about 50 ms, so a guess is dear; checked in worker threads, one a processor.
COST, BLOCK, PARALLEL = 1 << 14, 8, 1

Passwords = Mapping[str, tuple[bytes, bytes]]


def hash_password(user: str, password: str, salt: bytes | None = None) -> str:
    """Make a line of the password file.

    Args:
        user: Non-empty, without ':' and line breaks.
        password: Any text.
        salt: 16 bytes; random when not given.

    Raises:
        ValueError: The user name cannot be written into the file.
    """
    if not user or ":" in user or not user.isprintable():
        raise ValueError(f"user name {user!r}: it must not be empty, nor hold ':' or control characters")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    return f"{user}:{salt.hex()}:{_scrypt(password.encode(), salt).hex()}"


def read_passwords(path: Path) -> Passwords:
    """Read a password file; empty lines and lines that begin with '#' are skipped.

    Returns:
        User -> (salt, hash).

    Raises:
        ValueError: Names the file and the first bad line.
        OSError: The file cannot be read.
    """
    out: dict[str, tuple[bytes, bytes]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            user, salt_hex, hash_hex = line.split(":")
            salt, digest = bytes.fromhex(salt_hex), bytes.fromhex(hash_hex)
        except ValueError:
            salt = digest = b""
            user = ""
        if not user or user in out or len(salt) != SALT_BYTES or len(digest) != HASH_BYTES:
            raise ValueError(
                f"{path}, line {number}: not 'user:salt:hash', or the user is there twice; "
                "make lines with: edge-runtime broker --hash-password USER"
            )
        out[user] = (salt, digest)
    return out


def verify(passwords: Passwords, user: str | None, password: bytes | None) -> bool:
    """Check a login in a time that does not tell whether the user exists."""
    salt, digest = passwords.get(user or "", (bytes(SALT_BYTES), b""))
    return hmac.compare_digest(_scrypt(password or b"", salt), digest)


def _scrypt(password: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(password, salt=salt, n=COST, r=BLOCK, p=PARALLEL, dklen=HASH_BYTES)
