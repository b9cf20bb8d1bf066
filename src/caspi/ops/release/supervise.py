"""`python -m caspi.ops.release.supervise COMMAND...`: run a command that must not outlive the process that started it.

Its standard input is a pipe from that process. When the pipe ends, because the process closed it or died, however it
died, everything in this session is stopped: a model server that is left behind would hold the GPU.
"""

import os
import signal
import subprocess
import sys
import threading
import time

STOP_TIMEOUT_SECONDS = 15.0


def main(command: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: None)  # it reaches the child as well, whose end is waited for
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=stop_when_input_ends, args=(child,), daemon=True).start()
    return child.wait()


def stop_when_input_ends(child: subprocess.Popen[bytes]) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    child.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
