"""Servers of object stores on this machine: moto's S3, and one of Google's."""

from __future__ import annotations

import contextlib
import http
import os
import socket
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = "runs"


@contextlib.contextmanager
def s3() -> Iterator[dict[str, str]]:
  """A server of S3 with one bucket; gives the variables that lead to it."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  url = f"http://{host}:{port}"
  request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
  urllib.request.urlopen(request).close()
  try:
    yield {
      "AWS_ENDPOINT_URL": url,
      "AWS_ACCESS_KEY_ID": "test",
      "AWS_SECRET_ACCESS_KEY": "test",
      "AWS_DEFAULT_REGION": "us-east-1",
    }
  finally:
    server.stop()


@contextlib.contextmanager
def gs() -> Iterator[dict[str, str]]:
  """A server of Google Cloud Storage with one bucket; as `s3`."""
  from gcp_storage_emulator.exceptions import NotFound
  from gcp_storage_emulator.handlers import objects
  from gcp_storage_emulator.server import create_server

  upload = objects._multipart_upload

  # The real one refuses to write twice what must not exist; the emulator does
  # not look at this.
  def checked(request, response, storage):
    if request.query.get("ifGenerationMatch") == ["0"]:
      name = request.data["meta"].get("name")
      with contextlib.suppress(NotFound):
        storage.get_file_obj(request.params["bucket_name"], name)
        response.status = http.HTTPStatus.PRECONDITION_FAILED
        return
    upload(request, response, storage)

  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  server = create_server(
    "127.0.0.1", port, in_memory=True, default_bucket=BUCKET
  )
  server.start()
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(objects, "_multipart_upload", checked)
      yield {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        # Nobody is asked for credentials.
        "NO_GCE_CHECK": "true",
      }
  finally:
    server.stop()


SERVERS = {"s3": s3, "gs": gs}


@contextlib.contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
  """Environment variables, and clients that know them."""
  import fsspec

  with pytest.MonkeyPatch.context() as patch:
    for name, value in values.items():
      patch.setenv(name, value)
    patch.setitem(os.environ, "NO_PROXY", "127.0.0.1")
    fsspec.AbstractFileSystem.clear_instance_cache()
    yield
