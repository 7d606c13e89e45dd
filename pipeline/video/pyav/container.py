"""Opens a video file for single-threaded decoding, or raises VideoError with a one-line reason."""

from dataclasses import dataclass
from typing import Any, BinaryIO

from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError, VideoError
from skipreel.pipeline.storage.uris import explained

# FFmpeg guesses the format from the content. Without this list it would also read playlists, which open other files
# and addresses, and would draw text files as pictures.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg"
_EBML_ID, _SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BULKY = {b"mdat", b"moov", b"moof", b"RIFF", _SEGMENT_ID}


@dataclass
class OpenContainer:
    """An open container, its video stream, and the Python file that FFmpeg reads where the URI is not a local path."""

    container: Any
    stream: Any
    file: Any = None
    probing_skipped: bool = False

    def close(self) -> None:
        """Close container and file; an unclosed container holds a thread and a descriptor."""
        self.container.close()
        if self.file is not None:
            self.file.close()


def open_container(uri: str, *, skip_probing: bool = False) -> OpenContainer:
    """Open a video file for single-threaded decoding.

    `skip_probing` forbids FFmpeg to decode the first frames of an MP4 to learn what its header leaves out, which takes
    most of the time. MP4 packets state all their times. But an H.264 stream then does not know its pixel format, and it
    may lose frames if its header does not say how far frames are reordered.

    Raises:
        VideoError: if the file is not a readable video; the message says why.
    """
    try:
        head = _checked_head(uri)
        skip_probing = skip_probing and head[4:8] == b"ftyp"
        opened = _open(uri, head, skip_probing=skip_probing)
        if skip_probing and len(opened.container.streams.video) > 1:  # FFmpeg chooses among them by what it probed
            opened.close()
            opened = _open(uri, head, skip_probing=False)
    except StorageError as error:
        raise VideoError(str(error)) from error
    try:
        _prepare(uri, opened)
    except BaseException:
        opened.close()
        raise
    return opened


def _checked_head(uri: str) -> bytes:
    """The first 16 bytes of a file; VideoError if the file is empty or cut off."""
    with explained("read", uri), storage.open_input(uri) as probe:
        head = probe.read(16)
        size = probe.seek(0, 2)
        missing = _missing_bytes(probe, size)
    if not size:
        raise VideoError(f"{uri} is empty (0 bytes); copy or record it again")
    if missing:
        raise VideoError(f"{uri} is cut off: {missing} of {size + missing} bytes are missing; copy or record it again")
    return head


def _open(uri: str, head: bytes, *, skip_probing: bool) -> OpenContainer:
    import av

    options = {"format_whitelist": _FORMATS}
    if skip_probing:
        options |= {"skip_frame": "all", "analyzeduration": "1"}  # for the probing decoders; ours is created later
    path = storage.local_path(uri)
    file = None if path is not None else storage.open_input(uri)
    try:
        container = av.open(file or str(path), options=options)
    except (av.FFmpegError, OSError) as error:
        if file is not None:
            file.close()
        raise VideoError(f"{uri} {_why_unreadable(head)}") from error
    return OpenContainer(container, container.streams.best("video"), file, skip_probing)


def _why_unreadable(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "is cut off: the index at the end of this MP4/MOV file is missing; copy or record it again"
    return "is not a video, or is damaged at its start; give a file such as MP4, MKV, AVI or MPEG"


def _prepare(uri: str, opened: OpenContainer) -> None:
    import av

    stream = opened.stream
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        kinds = ", ".join(sorted({other.type for other in opened.container.streams})) or "nothing"
        raise VideoError(f"{uri} has no video stream, only {kinds}; give a file with pictures")
    if stream.codec_context is None:
        raise VideoError(f"{uri} uses a codec that this FFmpeg cannot decode; convert it, for example to H.264")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # Stop at the first corrupt frame instead of returning garbage.
    stream.codec_context.options = {"err_detect": "explode"}


def _missing_bytes(file: BinaryIO, size: int) -> int:
    """Number of bytes that the top-level elements of an MP4, Matroska or AVI file claim beyond its end; 0 if intact.

    FFmpeg plays a file that was cut off as if it were a shorter one.
    """
    at, end = 0, 0
    while at + 16 <= size:
        file.seek(at)
        kind, length = _element(file.read(16))
        if length is None:
            break
        at += length
        end = at if kind in _BULKY else end
    return max(end - size, 0)


def _element(head: bytes) -> tuple[bytes, int | None]:
    """Kind and total length in bytes of the element that starts with these 16 bytes; None if the length is open."""
    if head[:4] in (_EBML_ID, _SEGMENT_ID):
        width = 9 - head[4].bit_length()  # leading zero bits encode how many bytes the length has
        open_ended = (1 << 7 * width) - 1  # all ones: a live recording
        length = int.from_bytes(head[4 : 4 + width], "big") & open_ended
        return head[:4], None if length == open_ended else 4 + width + length
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return head[:4], 8 + length + length % 2 if 0 < length < 0xFFFFFFF0 else None
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return head[4:8], length if length >= 8 else None
