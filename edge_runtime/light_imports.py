"""Loads hashlib without OpenSSL, 2 MB that a board never uses; the client imports this first.

SHA-256 of Python's own is used instead: slower (150 against 570 MB/s on an x86-64 server), but it needs no libcrypto in
memory. Pythons built without it keep OpenSSL's. The module is loaded as ever for whoever imports OpenSSL's own later,
and nothing is changed where hashlib is loaded already.
"""

import importlib
import sys
from importlib.util import find_spec

__all__: list[str] = []

_HIDDEN = "_hashlib"


def _load() -> None:
    if "hashlib" in sys.modules or _HIDDEN in sys.modules or not _has_own_hashes():
        return
    # The type of sys.modules leaves out None, which means to the import system: not to be found.
    sys.modules[_HIDDEN] = None  # type: ignore[assignment]
    try:
        importlib.import_module("hashlib")
    finally:
        del sys.modules[_HIDDEN]


def _has_own_hashes() -> bool:
    sha2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
    return all(find_spec(name) is not None for name in ("_md5", "_sha1", *sha2, "_sha3", "_blake2"))


_load()
