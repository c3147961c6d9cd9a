"""Loads paho-mqtt and hashlib without 6 MB that they bring and a board never uses; the client imports it first.

- The client dials for itself and speaks plain MQTT (edge_runtime/link.py), so paho needs neither `ssl` nor
  `urllib.request`, which would load the whole of http and email for proxies.
- SHA-256 of Python's own is used instead of OpenSSL's: slower (150 against 570 MB/s on an x86-64 server), but it needs
  no libcrypto in memory. Pythons built without it keep OpenSSL's.

Both modules are loaded as ever for whoever imports them later, and nothing is changed where paho or hashlib are loaded
already.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

__all__: list[str] = []


class _SSLWantReadError(OSError):
    """Never raised: paho names it in the handlers around every read and write."""


class _SSLWantWriteError(OSError):
    """Never raised, as above."""


def _load() -> None:
    if "hashlib" not in sys.modules and _has_own_hashes():
        _import("hashlib", {"_hashlib": None})
    if "paho.mqtt.client" not in sys.modules:
        ssl = ModuleType("ssl")
        vars(ssl).update(SSLWantReadError=_SSLWantReadError, SSLWantWriteError=_SSLWantWriteError)
        _import("paho.mqtt.client", {"ssl": ssl, "urllib.request": ModuleType("urllib.request")})


def _has_own_hashes() -> bool:
    sha2 = ("_sha2",) if sys.version_info >= (3, 12) else ("_sha256", "_sha512")
    return all(find_spec(name) is not None for name in ("_md5", "_sha1", *sha2, "_sha3", "_blake2"))


def _import(name: str, stand_ins: dict[str, ModuleType | None]) -> None:
    """Import one module while others that are not loaded yet are stood in for, or absent where None."""
    present = {hidden: module for hidden, module in stand_ins.items() if hidden not in sys.modules}
    # The type of sys.modules leaves out None, which means to the import system: not to be found.
    sys.modules.update(present)  # type: ignore[arg-type]
    try:
        importlib.import_module(name)
    finally:
        for hidden in present:
            del sys.modules[hidden]


_load()
