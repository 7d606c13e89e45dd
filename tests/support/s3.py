"""Fixtures of a real S3 server on loopback: pyarrow talks HTTP to it, with credentials from the environment.

A test file gets the fixtures by `pytest_plugins = ("tests.support.s3",)`. It imports nothing from here at run time, as
pytest rewrites the assertions of a plugin only on its own import.
"""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest

from skipreel.pipeline import storage

_FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class S3Folder:
    """A fresh folder in the bucket, and the requests that the server received, as "METHOD /bucket/key"."""

    uri: str
    requests: list[str]

    def join(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)

    @property
    def forbidden(self) -> str:
        """A file for which the server answers 403."""
        return self.join(_FORBIDDEN)

    def write(self, name: str, data: bytes = b"") -> str:
        """Write a file and return its URI."""
        uri = self.join(name)
        storage.write_atomic(uri, data)
        return uri


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, list[str]]]:
    """The URI of a bucket and the list of requests."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log_request(self, *_: object) -> None:
            pass

    requests: list[str] = []
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if _FORBIDDEN in environ["PATH_INFO"]:
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        bucket = f"s3://videos?endpoint_override={address}&scheme=http&region=us-east-1"
        filesystem, name = storage.resolve(bucket + "&allow_bucket_creation=true")
        filesystem.create_dir(name)
        yield bucket, requests
    server.shutdown()
    thread.join()


@pytest.fixture
def s3(s3_server: tuple[str, list[str]]) -> S3Folder:
    """A folder for this test alone."""
    bucket, requests = s3_server
    return S3Folder(storage.join(bucket, f"a b {uuid.uuid4().hex[:8]}"), requests)
