"""Run as a script: become the given command, tied to the life of the parent process.

    python leash.py PARENT_PID COMMAND [ARGUMENT...]

A separate program and not a `preexec_fn`, which may deadlock in a parent that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(sys.argv[1]):  # the parent died before the line above
            sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])
