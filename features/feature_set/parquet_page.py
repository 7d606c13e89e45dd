"""`values_offset`: finds a column chunk's plain values, from Parquet's page header in Thrift's compact protocol."""

from typing import Any, BinaryIO

# Header and levels of our pages take some hundred bytes, a few thousand if sequences are tiny.
_HEAD_BYTES = 1 << 16
_DATA_PAGE, _DATA_PAGE_V2 = 0, 3
_PLAIN = 0


def values_offset(file: BinaryIO, column: Any, *, num_values: int, value_bytes: int) -> int | None:
    """Find the byte offset in the file at which a list column's values begin; None if they cannot be read directly.

    They can if the chunk begins with an uncompressed page of plain values, and this page's header, levels and
    ``num_values`` values fill the chunk to the byte. Then it does not have another page, a dictionary, nulls or empty
    lists.

    Args:
        column: pyarrow's metadata of the column chunk.
    """
    if column.compression != "UNCOMPRESSED":
        return None
    start = column.data_page_offset
    file.seek(start)
    head = file.read(min(_HEAD_BYTES, column.total_compressed_size))
    try:
        page, levels_at = _struct(head, 0)
        if page[1] == _DATA_PAGE:
            encoding = page[5][2]
            values_at = _skip_sized(head, _skip_sized(head, levels_at))
        elif page[1] == _DATA_PAGE_V2:
            encoding = page[8][4]
            values_at = levels_at + page[8][5] + page[8][6]
        else:
            return None
    except (IndexError, KeyError, TypeError):  # another kind of page, or levels beyond what was read
        return None
    if encoding != _PLAIN or values_at + num_values * value_bytes != column.total_compressed_size:
        return None
    return int(start + values_at)


def _skip_sized(data: bytes, at: int) -> int:
    """Skip levels: 4 bytes with their size, then the levels."""
    return at + 4 + int.from_bytes(data[at : at + 4], "little")


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Read a struct: its fields by number, and the position after it."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = data[at] >> 4, data[at] & 15
        at += 1
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = _field(data, at, kind)
    return fields, at + 1


def _field(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    match kind:
        case 1 | 2:  # true, false: the kind is the value
            return kind == 1, at
        case 4 | 5 | 6:
            return _integer(data, at)
        case 8:  # bytes: a statistic, not needed here
            size, at = _varint(data, at)
            return None, at + size
        case 12:
            return _struct(data, at)
        case _:
            raise KeyError(kind)


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at  # zigzag


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
