"""Sound files, which nobody has checked, to mono samples at 16 kHz, which everybody may trust.

Nothing in a header is believed: a file is opened only if it is a regular file that begins like WAV, FLAC, MP3, Ogg
or AIFF; it is read in small blocks, so a false sample count costs no memory; it ends in an `AudioError` with a reason.
"""

import io
import mmap
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from caspi.files import file_kind
from caspi.records import write_atomically
from caspi.speech.corpora import mp3

SAMPLE_RATE_HZ = 16_000
MAX_FILE_MIB = 512.0
"""Larger files are refused unread."""
MIN_SOURCE_RATE_HZ, MAX_SOURCE_RATE_HZ = 4_000, 192_000
MAX_CHANNELS = 8
MAX_RECORDING_SECONDS = 24 * 3600.0
MAX_LOADED_SECONDS = 3600.0
"""One call of `load_audio` decodes at most this much (220 MiB); longer recordings are read by offset and duration."""
END_TOLERANCE_SECONDS = 0.05
"""A stretch may end this far beyond its file, because manifests round times; what is there is returned."""
MAX_PEAK = 16.0
"""Floating-point samples above this (full scale is 1) are on another scale, for example that of 16-bit integers."""
BLOCK_FRAMES = 1 << 16
UNKNOWN_FRAMES = 2**63 - 1
"""libsndfile's length of a stream that does not state one."""
FLOAT_ENCODINGS = frozenset({"FLOAT", "DOUBLE"})
"""Encodings that can hold NaN and infinity, and values far above full scale."""
STREAMED_RIFF_BYTES = 0x7FFF_F000
"""Sizes from here on are what encoders write that cannot go back: the true size is that of the file."""


class AudioError(ValueError):
    """An audio file that cannot be used.

    `reason` is one of AUDIO_MISSING, AUDIO_NOT_A_FILE, AUDIO_EMPTY, AUDIO_TOO_LARGE, AUDIO_UNSUPPORTED (no container
    that we read), AUDIO_UNREADABLE (the decoder gives up), AUDIO_TRUNCATED (less audio than the header claims),
    AUDIO_HEADER (implausible rate or channels), AUDIO_NOT_FINITE, AUDIO_OVER_RANGE, AUDIO_STRETCH (offset or duration
    outside the file), AUDIO_OUTSIDE_ROOT. The message is one line: file, what was found, what was expected.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


class AudioInfo(NamedTuple):
    duration_seconds: float
    sample_rate_hz: int
    num_channels: int
    num_frames: int
    """Samples per channel at the file's own rate."""
    container: str
    """wav, flac, mp3, ogg or aiff."""
    encoding: str
    """Subtype as libsndfile calls it, for example PCM_16, FLOAT, OPUS."""


def probe_audio(path: Path | str, max_file_mib: float = MAX_FILE_MIB) -> AudioInfo:
    """Describe a file without decoding it; the duration is exact.

    Checked beyond the header: a WAV or AIFF holds the bytes it announces, a FLAC really reaches its last sample, the
    frames of an MP3 are counted, and Ogg states its length at its end. What only a decoder can see (NaN, a damaged
    middle) shows in `load_audio`.

    Raises:
        AudioError: the file cannot be used, see `AudioError.reason`.
    """
    with open_audio(Path(path), max_file_mib) as (sound, container):
        if container in ("flac", "ogg"):
            check_last_frame(sound, path)
        duration_seconds = sound.frames / sound.samplerate
        return AudioInfo(duration_seconds, sound.samplerate, sound.channels, sound.frames, container, sound.subtype)


def load_audio(path: Path | str, offset_seconds: float = 0.0, duration_seconds: float | None = None) -> np.ndarray:
    """Decode a file, or a stretch of it, to float32 [num_samples]: mono, 16 kHz, finite, full scale 1.

    Channels are averaged. The stretch is cut at the file's own rate, exact to the sample, and then resampled (soxr HQ).
    Without duration, the stretch reaches to the end of the file.

    Raises:
        AudioError: the file or the stretch cannot be used, see `AudioError.reason`.
    """
    with open_audio(Path(path), MAX_FILE_MIB) as (sound, _):
        first, num_frames = stretch_frames(sound, path, offset_seconds, duration_seconds)
        skip_to(sound, first)
        samples = decode(sound, path, num_frames)
    if not np.isfinite(samples).all():
        raise AudioError("AUDIO_NOT_FINITE", f"{quote(path)} holds values too large to resample")
    return samples


def write_audio(path: Path | str, samples: np.ndarray) -> None:
    """Write float samples [num_samples], mono at 16 kHz, as 16-bit FLAC or WAV by suffix; the file appears complete.

    Values beyond full scale are clipped. Reading the file back gives `round(samples * 32768) / 32768`.

    Raises:
        ValueError: another suffix, not one dimension, or values that are not finite.
    """
    path = Path(path)
    container = {".wav": "WAV", ".flac": "FLAC"}.get(path.suffix.lower())
    if container is None:
        raise ValueError(f"{quote(path)}: audio is written as .wav or .flac")
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise ValueError(f"{quote(path)}: expected finite samples of one channel, found shape {samples.shape}")
    integers = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, integers, SAMPLE_RATE_HZ, format=container, subtype="PCM_16")
    write_atomically(path, encoded.getvalue())


@contextmanager
def open_audio(path: Path, max_file_mib: float) -> Iterator[tuple[soundfile.SoundFile, str]]:
    """Open a checked file and name its container; decoder errors inside the `with` become `AudioError` too."""
    num_bytes = regular_file_bytes(path, max_file_mib)
    container = "unknown"
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(64)
            container = sniff(head, path)
            check_announced_bytes(head, path, container, num_bytes)
            file.seek(0)
            source = mp3_source(file.fileno(), path) if container == "mp3" else file.fileno()
            with soundfile.SoundFile(source, closefd=False) as sound:
                check_header(sound, path)
                yield sound, container
    except soundfile.LibsndfileError as error:
        found = error.error_string or f"libsndfile error {error.code}"
        message = f"{quote(path)} begins like {container.upper()} but cannot be decoded: {found}"
        raise AudioError("AUDIO_UNREADABLE", message) from None
    except OSError as error:
        raise AudioError("AUDIO_UNREADABLE", f"{quote(path)} cannot be read: {error.strerror}") from None


def regular_file_bytes(path: Path, max_file_mib: float) -> int:
    """Size of a regular file; looked at before opening, because opening a FIFO waits for ever."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError("AUDIO_MISSING", f"{quote(path)} does not exist") from None
    except (OSError, ValueError) as error:
        raise AudioError("AUDIO_UNREADABLE", f"{quote(path)} cannot be opened: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("AUDIO_NOT_A_FILE", f"{quote(path)} is a {file_kind(status.st_mode)}, expected a file")
    if status.st_size == 0:
        raise AudioError("AUDIO_EMPTY", f"{quote(path)} has 0 bytes")
    if status.st_size > max_file_mib * 2**20:
        found = f"{status.st_size / 2**20:.1f} MiB, expected at most {max_file_mib:g} MiB"
        raise AudioError("AUDIO_TOO_LARGE", f"{quote(path)} has {found}; cut it, or raise prepare.max_file_mib")
    return status.st_size


def sniff(head: bytes, path: Path) -> str:
    """Container by the first bytes; the suffix of a name proves nothing."""
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:3] == b"ID3" or mp3.parse_frame_header(head[:4]) is not None:
        return "mp3"
    expected = "expected WAV, FLAC, MP3, Ogg or AIFF"
    if head[4:8] == b"ftyp":
        found = f"is M4A/MP4, {expected}; convert it: ffmpeg -i IN -ac 1 -ar 16000 OUT.flac"
    elif head[:4] == b"\x1aE\xdf\xa3":
        found = f"is WebM/Matroska, {expected}; convert it: ffmpeg -i IN -ac 1 -ar 16000 OUT.flac"
    else:
        found = f"is not audio that we read: it begins with {head[:12]!r}, {expected}"
    raise AudioError("AUDIO_UNSUPPORTED", f"{quote(path)} {found}")


def check_announced_bytes(head: bytes, path: Path, container: str, num_bytes: int) -> None:
    """libsndfile quietly shortens a WAV or AIFF that was cut off; its transcript would then be too long."""
    if container not in ("wav", "aiff"):
        return
    announced = int.from_bytes(head[4:8], "little" if container == "wav" else "big") + 8
    if num_bytes + 1 < announced < STREAMED_RIFF_BYTES:  # some encoders count a padding byte that they do not write
        found = f"is cut off: {num_bytes} bytes, its header announces {announced}"
        raise AudioError("AUDIO_TRUNCATED", f"{quote(path)} {found}")


def mp3_source(descriptor: int, path: Path) -> int | io.BytesIO:
    """What libsndfile is to read: the file itself, or the file with a tag that states its true length."""
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        layout = mp3.read_layout(data)
        if layout is None or layout.num_audio_frames == 0:
            raise AudioError("AUDIO_UNREADABLE", f"{quote(path)} begins like MP3 but holds no frame of MPEG layer III")
        if layout.tagged_frames == layout.num_audio_frames:
            return descriptor
        if layout.tagged_frames is not None and layout.tagged_frames > layout.num_audio_frames + 1:
            found = f"{layout.num_audio_frames} MPEG frames, its header announces {layout.tagged_frames}"
            raise AudioError("AUDIO_TRUNCATED", f"{quote(path)} is cut off: {found}")
        return io.BytesIO(mp3.with_info_tag(data, layout))


def check_header(sound: soundfile.SoundFile, path: Path) -> None:
    rate, channels, frames = sound.samplerate, sound.channels, sound.frames
    if not MIN_SOURCE_RATE_HZ <= rate <= MAX_SOURCE_RATE_HZ:
        expected = f"{MIN_SOURCE_RATE_HZ} to {MAX_SOURCE_RATE_HZ} Hz"
        raise AudioError("AUDIO_HEADER", f"{quote(path)} has a sampling rate of {rate} Hz, expected {expected}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError("AUDIO_HEADER", f"{quote(path)} has {channels} channels, expected 1 to {MAX_CHANNELS}")
    if frames == UNKNOWN_FRAMES:
        raise AudioError("AUDIO_HEADER", f"{quote(path)} does not state its length; write it again, for example by sox")
    if frames > MAX_RECORDING_SECONDS * rate:
        found, expected = f"{frames / rate / 3600:.0f} hours", f"at most {MAX_RECORDING_SECONDS / 3600:.0f}"
        raise AudioError("AUDIO_HEADER", f"{quote(path)} claims to last {found}, expected {expected}")
    if frames <= 0:
        raise AudioError("AUDIO_EMPTY", f"{quote(path)} holds no samples")


def check_last_frame(sound: soundfile.SoundFile, path: Path | str) -> None:
    """A truncated file, or a false sample count, shows when the last sample is asked for."""
    try:
        sound.seek(sound.frames - 1)
        num_read = len(sound.read(1))
    except soundfile.LibsndfileError:
        num_read = 0
    if num_read == 0:
        found = f"its header announces {sound.frames / sound.samplerate:.2f} s, and the end cannot be decoded"
        raise AudioError("AUDIO_TRUNCATED", f"{quote(path)} is cut off or its header is false: {found}")


def stretch_frames(
    sound: soundfile.SoundFile, path: Path | str, offset_seconds: float, duration_seconds: float | None
) -> tuple[int, int]:
    """First frame and number of frames of a stretch, at the file's own rate."""
    rate, file_seconds = sound.samplerate, sound.frames / sound.samplerate
    if duration_seconds is None:
        duration_seconds = file_seconds - offset_seconds
    end_seconds = offset_seconds + duration_seconds
    if not (offset_seconds >= 0 and duration_seconds > 0 and end_seconds <= file_seconds + END_TOLERANCE_SECONDS):
        asked = f"from {offset_seconds:g} s for {duration_seconds:g} s"
        raise AudioError("AUDIO_STRETCH", f"{quote(path)} has {file_seconds:.3f} s; a stretch {asked} is not inside")
    if duration_seconds > MAX_LOADED_SECONDS:
        asked = f"{duration_seconds:.0f} s, expected at most {MAX_LOADED_SECONDS:g} s at once"
        raise AudioError("AUDIO_TOO_LARGE", f"{quote(path)}: asked for {asked}; give offset and duration")
    first = round(offset_seconds * rate)
    num_frames = min(round(duration_seconds * rate), sound.frames - first)
    if num_frames < 1:
        raise AudioError("AUDIO_STRETCH", f"{quote(path)}: the stretch at {offset_seconds:g} s holds no sample")
    return first, num_frames


def skip_to(sound: soundfile.SoundFile, first: int) -> None:
    """Move to a frame. libsndfile 1.2.2 misses it by hundreds of samples near the end of Vorbis: decode up to it."""
    if sound.subtype != "VORBIS":
        sound.seek(first)
        return
    while first > 0:
        num_read = len(sound.read(min(first, BLOCK_FRAMES), dtype="float32"))
        if num_read == 0:
            return
        first -= num_read


def decode(sound: soundfile.SoundFile, path: Path | str, num_frames: int) -> np.ndarray:
    """Read blocks from where the file stands, average the channels, resample: float32 [num_samples]."""
    resampler = soxr.ResampleStream(sound.samplerate, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ")
    chunks = []
    num_missing = num_frames
    while num_missing > 0:
        block = sound.read(min(num_missing, BLOCK_FRAMES), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        check_values(block, path)
        chunks.append(resampler.resample_chunk(block.mean(axis=1, dtype=np.float32)))
        num_missing -= len(block)
    if num_missing > END_TOLERANCE_SECONDS * sound.samplerate:
        found = f"{num_missing / sound.samplerate:.2f} s of {num_frames / sound.samplerate:.2f} s are missing"
        raise AudioError("AUDIO_TRUNCATED", f"{quote(path)} is cut off: {found}")
    chunks.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(chunks)


def check_values(block: np.ndarray, path: Path | str) -> None:
    if not np.isfinite(block).all():
        raise AudioError("AUDIO_NOT_FINITE", f"{quote(path)} holds NaN or infinite samples")
    peak = float(np.abs(block).max())
    if peak > MAX_PEAK:
        expected = f"full scale is 1, expected at most {MAX_PEAK:g}"
        raise AudioError("AUDIO_OVER_RANGE", f"{quote(path)} holds samples of {peak:g}; {expected}")


def quote(path: Path | str) -> str:
    """The path on one line, whatever characters it holds."""
    return repr(str(path))
