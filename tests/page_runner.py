"""Runs the blocks of one page of the documentation: shell blocks in one bash, Python blocks in one interpreter.

Run as ``python -P page_runner.py BLOCKS.json``. The file holds a list of ``{"language", "text", "line"}``. The program imports
nothing of this checkout, so the installed package runs. It prints every block before it runs it, and stops at the first one that
fails.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(blocks: list[dict[str, Any]]) -> int:
    """The exit code: 0, or 1 after a block that failed."""
    read, write = os.pipe()
    # Job control by number (`kill %1`) works in a script too; what is left running at the end is stopped by whoever called.
    bash = subprocess.Popen(["bash", "-e", "-o", "pipefail"], stdin=subprocess.PIPE, text=True, pass_fds=[write])
    assert bash.stdin is not None
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        _say(f"\n>>> line {block['line']}, {block['language']}\n{block['text']}")
        if block["language"] == "python":
            exec(compile(block["text"], f"line {block['line']}", "exec"), names)
        else:
            try:
                bash.stdin.write(f"{block['text']}\necho done >&{write}\n")
                bash.stdin.flush()
            except BrokenPipeError:
                return _failed(block)
            while not select.select([read], [], [], 0.1)[0]:
                if bash.poll() is not None:
                    return _failed(block)
            os.read(read, 100)
    bash.stdin.close()
    return bash.wait()


def _failed(block: dict[str, Any]) -> int:
    _say(f"the shell block at line {block['line']} failed")
    return 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(json.loads(Path(sys.argv[1]).read_text())))
