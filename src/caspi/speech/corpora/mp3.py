"""How many samples an MP3 file really holds.

libsndfile takes the length of an MP3 from its Xing/Info tag. Without that tag it extrapolates from the bit rate of the
first frame and then refuses to decode beyond its guess: a variable-bit-rate file loses most of its audio in silence.
Counting the frames takes no decoding and is exact, so we count, and give such a file the tag that it lacks.

Frame layout: ISO/IEC 11172-3 section 2.4.1 and 13818-3 section 2.4.1 (half sampling rates); MPEG-2.5 quarter rates.
"""

import mmap
from typing import NamedTuple, TypeAlias

Data: TypeAlias = bytes | mmap.mmap

MPEG1, MPEG2, MPEG25 = 3, 2, 0
BITRATES_KBPS = {
    MPEG1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    MPEG2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES_HZ = {MPEG1: (44100, 48000, 32000), MPEG2: (22050, 24000, 16000), MPEG25: (11025, 12000, 8000)}
LAYER_III = 1
MONO = 3
ID3V2_HEADER_BYTES = 10
MAX_RESYNC_BYTES = 1 << 16
"""Bytes searched for the next frame after damage or padding; more than that is not audio any more."""

MAX_TRAILER_BYTES = 1 << 12
"""An ID3v1 or small APE tag may follow the audio."""


class FrameHeader(NamedTuple):
    num_bytes: int
    num_samples: int
    """Samples per channel."""
    side_info_bytes: int


class Tag(NamedTuple):
    num_frames: int
    num_bytes: int | None
    """From the beginning of the tag's own frame to the end of the audio."""


class Mp3Layout(NamedTuple):
    first_audio_frame: int
    """Byte offset of the first MPEG frame that holds sound, behind ID3v2 tag and Xing/Info frame."""
    num_audio_frames: int
    tagged_frames: int | None
    """Number of audio frames that the Xing/Info tag claims; None without such a tag."""


def parse_frame_header(header: bytes) -> FrameHeader | None:
    """Read the four bytes that begin an MPEG layer III frame; None if they are something else."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer != LAYER_III or bitrate_index in (0, 15) or rate_index == 3:
        return None
    table = MPEG1 if version == MPEG1 else MPEG2
    num_samples = 1152 if version == MPEG1 else 576
    bits_per_second = BITRATES_KBPS[table][bitrate_index] * 1000
    padding = header[2] >> 1 & 1
    num_bytes = num_samples // 8 * bits_per_second // SAMPLE_RATES_HZ[version][rate_index] + padding
    mono = header[3] >> 6 == MONO
    side_info_bytes = (17 if mono else 32) if version == MPEG1 else (9 if mono else 17)
    return FrameHeader(num_bytes, num_samples, side_info_bytes)


def read_layout(data: Data) -> Mp3Layout | None:
    """Find out how many frames of sound the bytes of a file hold; None if there is none.

    A Xing/Info tag is believed when the file holds the number of bytes that it states, and no more behind them than a
    small tag; otherwise (no tag, a file cut short, two files joined) the frames are counted.
    """
    position = find_frame(data, end_of_id3(data))
    if position is None:
        return None
    first = parse_frame_header(data[position : position + 4])
    assert first is not None
    tag = read_tag(data, position, first)
    if tag is None:
        return Mp3Layout(position, count_complete_frames(data, position), None)
    first_audio_frame = position + first.num_bytes
    if tag.num_bytes is not None and 0 <= len(data) - position - tag.num_bytes <= MAX_TRAILER_BYTES:
        return Mp3Layout(first_audio_frame, tag.num_frames, tag.num_frames)
    return Mp3Layout(first_audio_frame, count_complete_frames(data, first_audio_frame), tag.num_frames)


def with_info_tag(data: Data, layout: Mp3Layout) -> bytes:
    """The same audio behind a frame with an Info tag, so that decoders know the true length."""
    header = bytearray(data[layout.first_audio_frame : layout.first_audio_frame + 4])
    header[1] |= 1  # no CRC, so that the side information begins right behind the header
    header[2] = header[2] & 0x0F | 0x90  # a bit rate whose frame holds the tag at every sampling rate
    frame = parse_frame_header(bytes(header))
    assert frame is not None
    tag = b"Info" + (1).to_bytes(4, "big") + layout.num_audio_frames.to_bytes(4, "big")
    body = bytes(header) + bytes(frame.side_info_bytes) + tag
    return body.ljust(frame.num_bytes, b"\0") + data[layout.first_audio_frame :]


def end_of_id3(data: Data) -> int:
    """Offset behind a leading ID3v2 tag, whose size is four groups of seven bits."""
    if data[:3] != b"ID3" or len(data) < ID3V2_HEADER_BYTES:
        return 0
    size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    return ID3V2_HEADER_BYTES + size


def find_frame(data: Data, start: int) -> int | None:
    """Offset of the next frame that is followed by another frame or by the end of the file."""
    end = min(len(data), start + MAX_RESYNC_BYTES)
    position = data.find(b"\xff", start, end)
    while position >= 0:
        frame = parse_frame_header(data[position : position + 4])
        if frame is not None:
            behind = data[position + frame.num_bytes : position + frame.num_bytes + 4]
            if position + frame.num_bytes == len(data) or parse_frame_header(behind) is not None:
                return position
        position = data.find(b"\xff", position + 1, end)
    return None


def read_tag(data: Data, position: int, frame: FrameHeader) -> Tag | None:
    """The Xing/Info tag inside the frame at `position`; None without tag, or if the tag states no frame count."""
    tag = position + 4 + frame.side_info_bytes
    fields = data[tag : tag + 16]
    if len(fields) < 16 or fields[:4] not in (b"Xing", b"Info") or not fields[7] & 1:
        return None
    num_bytes = int.from_bytes(fields[12:16], "big") if fields[7] & 2 else None
    return Tag(int.from_bytes(fields[8:12], "big"), num_bytes)


def count_complete_frames(data: Data, position: int) -> int:
    count = 0
    while position < len(data):
        frame = parse_frame_header(data[position : position + 4])
        if frame is None:
            found = find_frame(data, position)
            if found is None:
                break
            position = found
            continue
        position += frame.num_bytes
        count += position <= len(data)
    return count
