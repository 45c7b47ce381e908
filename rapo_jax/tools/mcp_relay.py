"""Stands between this process and an MCP server: a program of its own.

It starts the server, whose standard input is its own. It passes on lines of
JSON, and leaves out what else the server prints. A line that is too long, which
whoever reads would have to hold, ends both. The last words that the server
wrote to standard error follow when it ends.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import IO

_LAST_BYTES = 2000


def main() -> int:
  """Runs the server; returns its exit status."""
  max_bytes, command = int(sys.argv[1]), sys.argv[2:]
  server = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  assert server.stdout is not None
  assert server.stderr is not None
  last = bytearray()
  listener = threading.Thread(
    target=_listen, args=(server.stderr, last), daemon=True
  )
  listener.start()
  while line := server.stdout.readline(max_bytes + 1):
    if len(line) > max_bytes:
      server.kill()
      last += f"\na message has more than {max_bytes} bytes".encode()
      break
    if line.lstrip().startswith(b"{"):
      try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
      except OSError:
        server.kill()
        break
  status = server.wait()
  listener.join(1.0)
  sys.stderr.write(bytes(last[-_LAST_BYTES:]).decode("utf-8", "replace"))
  return status & 0xFF


def _listen(errors: IO[bytes], last: bytearray) -> None:
  """Keeps the end of what the server writes."""
  while part := errors.read1(2**16):  # type: ignore[attr-defined]
    last += part
    del last[:-_LAST_BYTES]


if __name__ == "__main__":
  sys.exit(main())
