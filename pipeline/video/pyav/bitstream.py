"""What the first bytes of a packet tell about the picture in it, codec by codec."""

from typing import Any


def is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet only helps to decode others; VP8 is the one codec that gives such a frame its own packet."""
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def length_bytes_of(stream: Any) -> int:
    """How many bytes state the length of each unit inside the packets of an H.264 or HEVC stream; 0: not known."""
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name)
    header = stream.codec_context.extradata or b""
    return 0 if place is None or len(header) <= place or header[0] != 1 else header[place] % 4 + 1


def picture_head(codec: str, packet: Any, length_bytes: int) -> int | None:
    """The byte that says what kind of picture an H.264, HEVC or MPEG-4 packet holds; None: not found."""
    if codec == "mpeg4":
        _, _, after = bytes(memoryview(packet)[:64]).partition(b"\x00\x00\x01\xb6")
        return after[0] if after else None
    if codec not in ("h264", "hevc"):
        return None
    data, at = memoryview(packet), length_bytes
    while length_bytes and at < len(data):
        head = data[at]
        if head & 31 in (1, 5) if codec == "h264" else head >> 1 & 63 < 32:  # a slice's
            return head
        at += length_bytes + int.from_bytes(data[at - length_bytes : at], "big")
    return None


def starts_afresh(codec: str, head: int | None) -> bool:
    """Whether decoding can begin at a key packet with nothing before it; periodic intra refresh only seems so."""
    if codec not in ("h264", "hevc"):
        return True
    if head is None:
        return False
    return head & 31 == 5 if codec == "h264" else 16 <= head >> 1 & 63 <= 21


def is_spare_picture(codec: str, head: int | None) -> bool:
    """Whether no frame needs this one; told only of codecs known to keep every other frame exact without it."""
    if head is None:
        return False
    if codec == "h264":
        return not head >> 5 & 3
    if codec == "hevc":
        kind = head >> 1 & 63
        return kind < 16 and kind % 2 == 0
    return head >> 6 == 2  # a B-picture of MPEG-4
