"""Cheap compilation for the whole test run: compiler flags and one folder of compiled programs.

Import this module before JAX. Most of the suite is tracing and compiling, and the same programs are compiled by
several workers and by the processes that tests start.
"""

import contextlib
import inspect
import os
from importlib import metadata
from pathlib import Path

from tests.helpers.paths import REPOSITORY

# Plain code instead of fast code: compiling takes a quarter of the time, and test inputs are small.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if metadata.version("jaxlib").startswith("0.10."):  # XLA stops at flags it does not know; newer ones are not tested
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
FOLDER = REPOSITORY / ".pytest_cache" / "jax"
FOLDER_BYTES = 2 << 30  # of old programs that are kept
MIN_COMPILE_SECONDS = 0.1  # below, writing an entry costs more than it saves


def environment() -> dict[str, str]:
    """Compiler flags and cache folder for this process and its children; variables that are set stay as they are.

    Children read the folder and do not write: JAX writes entries in place, so a child that a test kills would
    leave a torn file.
    """
    defaults = {"XLA_FLAGS": FLAGS, "JAX_COMPILATION_CACHE_DIR": str(FOLDER),
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    return defaults | {name: os.environ[name] for name in defaults if name in os.environ}


def write_from_this_process() -> None:
    """Lets this process add compiled programs to a folder.

    Entries of the shared folder are written under a temporary name first, which replaces a private method of JAX. In
    a version of JAX without that method, the process gets a folder of its own.
    """
    import jax

    if not _write_atomically():
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        jax.config.update("jax_compilation_cache_dir", str(Path(jax.config.jax_compilation_cache_dir) / worker))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def _write_atomically() -> bool:
    """Replaces JAX's writing of cache entries in place; returns False if its private interface differs."""
    try:
        from jax._src.lru_cache import LRUCache

        if list(inspect.signature(LRUCache.put).parameters) != ["self", "key", "value"]:
            return False
    except (ImportError, AttributeError):
        return False

    def put(cache, key, value):
        path = Path(str(cache.path)) / f"{key}-cache"
        if path.exists():
            return
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(value)
        temporary.replace(path)

    LRUCache.put = put
    return True


def drop_old_programs(folder: Path = FOLDER, size: int = FOLDER_BYTES) -> None:
    """Removes the oldest entries beyond ``size`` bytes."""
    kept = 0
    with contextlib.suppress(FileNotFoundError):
        entries = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.rglob("*")
                   if path.is_file()]
        for _, length, path in sorted(entries, reverse=True):
            kept += length
            if kept > size:
                path.unlink()
