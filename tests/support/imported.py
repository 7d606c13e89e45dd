"""What statements import, in a process that has imported nothing yet."""

import subprocess
import sys


def modules_after(*statements: str) -> list[set[str]]:
    """The modules that are loaded after each of these, one after the other."""
    code = "import sys\n" + "\n".join(f"{statement}\nprint(*sys.modules)" for statement in statements)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]
