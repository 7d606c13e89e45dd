"""Live sources for tests: pipes and servers that send a file's bytes or packets piece by piece."""

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import TextIO

import av

from tests.support.videos import write_video

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
_STUFFING = b"\x47\x1f\xff\x10" + bytes(184)  # an empty MPEG-TS packet
Send = Callable[[bytes], object]


def write_stream(path: Path, **settings: object) -> Path:
    """`write_video` in a form that can be read without seeking."""
    options = FRAGMENTED if path.suffix == ".mp4" else {}
    return write_video(path, container_options=options, **settings)  # type: ignore[arg-type]


def send_slowly(content: bytes, send: Send, *, parts: int = 20, pause_s: float = 0.005) -> None:
    """Give `content` to `send` in parts of odd sizes; a reader that disconnects is not an error."""
    places = [round(len(content) * part / parts) for part in range(parts + 1)]
    for start, stop in pairwise(places):
        try:
            send(content[start:stop])
        except (BrokenPipeError, ConnectionResetError, ValueError):
            return
        time.sleep(pause_s)


@contextmanager
def running(work: Callable[[], None]) -> Iterator[None]:
    """Run `work` in a thread during the test."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
    assert not thread.is_alive()


@contextmanager
def fifo(folder: Path, *parts: bytes, hold: threading.Event | None = None) -> Iterator[str]:
    """A FIFO that a thread writes `parts` into; with `hold` it stays open and silent until that is set."""
    path = folder / "camera"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for part in parts:
                send_slowly(part, file.write)
            if hold is not None:
                hold.wait(10)

    with running(write):
        try:
            yield str(path)
        finally:
            # Release a writer that still waits for a reader.
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            path.unlink()


@contextmanager
def http(
    content: bytes, *, status: int = 200, hold: threading.Event | None = None, requests: list[str] | None = None
) -> Iterator[str]:
    """A server that answers with `content`, slowly and without its length; it appends paths to `requests`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if requests is not None:
                requests.append(self.path)
            self.send_response(status)
            self.end_headers()
            send_slowly(content, self.wfile.write)
            if hold is not None:
                hold.wait(10)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, running(partial(server.serve_forever, 0.01)):
        try:
            yield f"http://127.0.0.1:{server.server_port}/camera"
        finally:
            server.shutdown()


@contextmanager
def tcp(content: bytes) -> Iterator[str]:
    """A server that sends `content` to the first client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                send_slowly(content, connection.sendall)

        with running(serve):
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def udp(content: bytes) -> Iterator[str]:
    """A sender of MPEG-TS that begins once somebody listens, and never signals an end."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.connect(("127.0.0.1", port))
            for _ in range(1000):
                try:
                    out.send(_STUFFING)
                    out.send(_STUFFING)  # raises if the first was refused
                    break
                except ConnectionRefusedError:
                    time.sleep(0.01)
            for start in range(0, len(content), 1316):
                send_slowly(content[start : start + 1316], out.send, parts=1, pause_s=0.001)

    with running(send):
        yield f"udp://127.0.0.1:{port}"


@contextmanager
def rtsp(path: Path) -> Iterator[str]:
    """A camera: an RTSP server that plays an H.264 MPEG-TS file as RTP packets over the same connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("r", newline="\r\n") as requests:
                while _answer(connection, requests) != "PLAY":
                    pass
                content = [b"$\0" + struct.pack(">H", len(packet)) + packet for packet in _rtp_packets(path)]
                for packet in content:
                    send_slowly(packet, connection.sendall, parts=1, pause_s=0.001)

        with running(serve):
            yield f"rtsp://user:secret@127.0.0.1:{server.getsockname()[1]}/camera"


_DESCRIPTION = "v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:video\r\n"


def _answer(connection: socket.socket, requests: TextIO) -> str:
    """Answer one request and return its method."""
    lines = list(iter(lambda: requests.readline().strip(), ""))
    number = next(line for line in lines if line.startswith("CSeq"))
    method = lines[0].split()[0]
    body = _DESCRIPTION if method == "DESCRIBE" else ""
    headers = [
        "RTSP/1.0 200 OK",
        number,
        "Public: OPTIONS, DESCRIBE, SETUP, PLAY",
        "Session: 1",
        "Transport: RTP/AVP/TCP;unicast;interleaved=0-1",
        f"Content-Type: application/sdp\r\nContent-Length: {len(body)}",
    ]
    connection.sendall(("\r\n".join(headers) + "\r\n\r\n" + body).encode())
    return method


def _rtp_packets(path: Path) -> Iterator[bytes]:
    """RTP packets (RFC 3550) of H.264 (RFC 6184), each with a NAL unit or a fragment of one."""
    number = 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            units = re.split(b"\0\0\0?\1", bytes(packet))[1:]
            for unit in units:
                pieces = list(_fragments(unit))
                for piece in pieces:
                    is_last = unit is units[-1] and piece is pieces[-1]
                    time = packet.pts % 2**32
                    yield struct.pack(">BBHII", 0x80, 96 | is_last << 7, number % 2**16, time, 1) + piece
                    number += 1


def _fragments(unit: bytes, size: int = 1000) -> Iterator[bytes]:
    if len(unit) <= size:
        yield unit
        return
    kind, content = unit[0], unit[1:]
    for start in range(0, len(content), size):
        flags = (start == 0) << 7 | (start + size >= len(content)) << 6
        yield bytes([kind & 0xE0 | 28, flags | kind & 31]) + content[start : start + size]
