"""The compiled programs that test processes share."""

import subprocess
import sys

import pytest

from tests.helpers.paths import REPOSITORY

_WRITE = """
import os, pathlib, sys
os.environ["JAX_COMPILATION_CACHE_DIR"] = sys.argv[1]
from tests.helpers import compilation
os.environ.update(compilation.environment())
import jax, jax._src.lru_cache as private
{change}
compilation.write_from_this_process()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: x * 3 + 1)(2))
"""


@pytest.mark.parametrize(("change", "folder"), [
    ("", "."), ("del private.LRUCache.put", "worker7"), ("del private.LRUCache", "worker7"),
    ("del sys.modules['jax._src.lru_cache']; sys.modules['jax._src.lru_cache'] = None", "worker7"),
    ("private.LRUCache.put = lambda self, key, value, time: None", "worker7")])
def test_each_process_writes_atomically_or_to_its_own_folder(tmp_path, monkeypatch, change, folder):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "worker7")
    done = subprocess.run([sys.executable, "-c", _WRITE.format(change=change), str(tmp_path)], capture_output=True,
                          text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0 and done.stdout == "7\n", done.stderr
    entries = [path for path in tmp_path.rglob("*-cache") if path.is_file()]
    if "LRUCache" not in change:  # JAX cannot write without its own class
        assert entries and all(path.parent == tmp_path / folder for path in entries)
