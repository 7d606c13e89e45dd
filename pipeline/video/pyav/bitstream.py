"""What the first bytes of a packet say about its picture, codec by codec."""

from typing import Any


def is_hidden(codec: str, packet: Any) -> bool:
    """Whether a packet's frame is never shown and only helps to decode others; only VP8 has such packets."""
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def nal_length_size(stream: Any) -> int:
    """Number of bytes of the length before each NAL unit in the packets of an H.264 or HEVC stream; 0: not known."""
    place = {"h264": 4, "hevc": 21}.get(stream.codec_context.name)
    header = stream.codec_context.extradata or b""
    return 0 if place is None or len(header) <= place or header[0] != 1 else header[place] % 4 + 1


def picture_header(codec: str, packet: Any, length_size: int) -> int | None:
    """The byte that states the type of the picture in an H.264, HEVC or MPEG-4 packet; None: not found."""
    if codec == "mpeg4":
        _, _, after = bytes(memoryview(packet)[:64]).partition(b"\x00\x00\x01\xb6")
        return after[0] if after else None
    if codec not in ("h264", "hevc"):
        return None
    data, at = memoryview(packet), length_size
    while length_size and at < len(data):
        head = data[at]
        if head & 31 in (1, 5) if codec == "h264" else head >> 1 & 63 < 32:  # a slice
            return head
        at += length_size + int.from_bytes(data[at - length_size : at], "big")
    return None


def is_random_access_point(codec: str, head: int | None) -> bool:
    """Whether a key packet and all later frames decode without earlier packets; not so with periodic intra refresh."""
    if codec not in ("h264", "hevc"):
        return True
    if head is None:
        return False
    return head & 31 == 5 if codec == "h264" else 16 <= head >> 1 & 63 <= 21


def is_droppable_picture(codec: str, head: int | None) -> bool:
    """Whether no other frame needs this one; True only for codecs that then keep every other frame exact."""
    if head is None:
        return False
    if codec == "h264":
        return not head >> 5 & 3
    if codec == "hevc":
        kind = head >> 1 & 63
        return kind < 16 and kind % 2 == 0
    return head >> 6 == 2  # an MPEG-4 B-picture
