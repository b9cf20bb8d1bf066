"""Short clips as Ogg/Opus for pages: small, played by every browser, and the same bytes every time."""

import base64
import io
import struct
from functools import cache

import numpy as np
import soundfile

from caspi.speech.corpora.audio import SAMPLE_RATE_HZ

PAGE_HEADER = struct.Struct("<4sBBqIIIB")
"""Capture pattern, version, type, granule, serial number, sequence, checksum, number of segments (RFC 3533)."""
POLYNOMIAL = 0x04C11DB7


def opus_bytes(samples: np.ndarray) -> bytes:
    """Encode float samples [num_samples], mono at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    return with_serial_number(file.getvalue(), 0)


def data_uri(ogg: bytes) -> str:
    return "data:audio/ogg;base64," + base64.b64encode(ogg).decode("ascii")


def with_serial_number(ogg: bytes, serial_number: int) -> bytes:
    """libsndfile draws the stream's number at random, which would make equal pages differ."""
    pages = []
    start = 0
    while start < len(ogg):
        *head, _, sequence, _, num_segments = PAGE_HEADER.unpack_from(ogg, start)
        table_end = start + PAGE_HEADER.size + num_segments
        table = ogg[start + PAGE_HEADER.size : table_end]
        end = table_end + sum(table)
        body = ogg[start + PAGE_HEADER.size : end]
        unsigned = PAGE_HEADER.pack(*head, serial_number, sequence, 0, num_segments) + body
        pages.append(PAGE_HEADER.pack(*head, serial_number, sequence, checksum(unsigned), num_segments) + body)
        start = end
    return b"".join(pages)


def checksum(page: bytes) -> int:
    """CRC-32 of Ogg: most significant bit first, nothing inverted."""
    table = crc_table()
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ table[(value >> 24) ^ byte]
    return value


@cache
def crc_table() -> tuple[int, ...]:
    values = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = ((value << 1) ^ (POLYNOMIAL if value & 0x80000000 else 0)) & 0xFFFFFFFF
        values.append(value)
    return tuple(values)
