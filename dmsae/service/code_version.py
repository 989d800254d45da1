"""Which code decides the result of a cycle? A name that changes with every change of the method's modules."""

import hashlib
import sys
from functools import cache
from pathlib import Path

import dmsae


@cache
def code_version() -> str:
    """Give a digest of the modules that trainers run, and of the Python that ships the built-in text.

    Versions of torch and the like are not in it: what they change is in the last bits.
    """
    digest = hashlib.sha256(f"{sys.version_info[:3]}".encode())
    for file in sorted(Path(dmsae.__file__).parent.glob("*.py")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
