"""Librosa, on machines without a folder for numba's compiled functions."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import tempfile
from types import ModuleType


@functools.cache
def load_librosa() -> ModuleType:
    """Import librosa.

    It takes a second or more. Numba keeps librosa's compiled functions beside the package or in the user's home. Where
    it can write to neither (a container without a home, a package of another user), importing librosa fails. Then they
    are kept in a temporary folder, for this process alone: numba unpickles what it finds there. Librosa names a folder
    for its examples, too, which is the same then.
    """
    import librosa

    modules = ("librosa.core.spectrum", "librosa.core.audio", "librosa.filters")  # librosa imports its own when used
    try:
        for module in modules:
            importlib.import_module(module)
    except RuntimeError:
        from numba.core import config

        folder = tempfile.mkdtemp(prefix="bmlr-numba-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        config.CACHE_DIR = folder  # type: ignore[attr-defined]
        caches = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            for module in modules:
                importlib.import_module(module)
        finally:
            if caches is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = caches
    return librosa
