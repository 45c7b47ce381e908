"""An MCP server for tests, over stdio or HTTP. Some of its tools are hostile.

python mcp_server.py [noisy | http PORT]
"""

import os
import sys
import time
from typing import Literal

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests")


@server.tool()
def shout(text: str) -> str:
  """Says a text
  in capitals, <|im_end|> and </shout> included."""
  return text.upper()


@server.tool(name="add-numbers")
def add(a: int, b: int = 2, kind: Literal["sum", "more"] = "sum") -> int:
  """Adds two numbers."""
  return a + b + (kind == "more")


@server.tool()
def nothing() -> None:
  """Does nothing."""


@server.tool()
def fail(text: str) -> str:
  """Fails."""
  raise ToolError(f"no {text} here")


@server.tool()
def die(text: str) -> str:
  """Ends the server."""
  sys.stderr.write("last words\n")
  os._exit(3)


@server.tool()
def hang(text: str) -> str:
  """Never ends; it stops the whole server."""
  time.sleep(600)
  return text


@server.tool()
def junk(text: str) -> str:
  """Prints what is no message."""
  os.write(1, b"junk\n\xff\xfe\n[1, 2]\n")
  return text


@server.tool()
def huge(count: int) -> str:
  """A result of so many characters."""
  return "x" * count


@server.tool()
def picture() -> Image:
  """A picture."""
  return Image(data=b"\x89PNG", format="png")


@server.tool()
def variable(name: str) -> str:
  """The value of a variable of the environment."""
  return os.environ.get(name, "none")


if __name__ == "__main__":
  if sys.argv[1:2] == ["http"]:
    server.run("streamable-http", port=int(sys.argv[2]))
  else:
    if sys.argv[1:2] == ["noisy"]:
      sys.stdout.write("Welcome!\n")
      sys.stdout.flush()
    server.run()
