"""Large blocks are reused by a CPU run instead of being given back to the kernel."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES_OF_A_BLOCK = 64 * 2**20 // 4096
SCRIPT = """
import resource
import sys

from engine.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(10):
    b"x" * (64 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", SCRIPT, how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_blocks_are_not_paid_for_again():
    saved = page_faults("return") - page_faults("keep")
    assert saved > 8 * PAGES_OF_A_BLOCK, f"{saved} page faults saved on 10 blocks of {PAGES_OF_A_BLOCK} pages"
