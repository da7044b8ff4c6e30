"""An S3 server (moto's, in a thread) with an empty bucket, and credentials in the environment only."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator

import fsspec
import pytest

from jetfoundry import files

KEY, SECRET = "AKIAJETFOUNDRYTESTID", "kX7-never-to-be-seen-9Qz"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of the bucket."""
    pytest.importorskip("s3fs")
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    environment = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
                   "AWS_ENDPOINT_URL": endpoint}  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(f"{endpoint}/moto-api/reset", data=b"").close()  # all servers of a process share one content
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="jets")
    forget()
    yield "s3://jets"
    server.stop()
    forget()


def forget() -> None:
    """What this process knows of servers: fsspec keeps file systems with their endpoint and credentials."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    files._GREETED.clear()


@pytest.fixture
def secrets() -> tuple[str, str]:
    """What must stand nowhere: the key's name and the key."""
    return KEY, SECRET
