"""Sound files: exact lengths, exact stretches, and every hostile file one reason."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from caspi.speech.corpora import mp3
from caspi.speech.corpora.audio import SAMPLE_RATE_HZ, AudioError, load_audio, probe_audio, write_audio


def noise(num_frames: int, seed: int = 0, num_channels: int = 1) -> np.ndarray:
    samples = 0.1 * np.random.default_rng(seed).standard_normal((num_frames, num_channels)).astype(np.float32)
    return samples[:, 0] if num_channels == 1 else samples


def tone(num_frames: int, rate_hz: int, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(num_frames) / rate_hz)).astype(np.float32)


def riff(num_channels: int = 1, rate_hz: int = 16000, claimed_bytes: int = 2000, num_bytes: int = 2000) -> bytes:
    """A 16-bit WAV of silence whose header may lie."""
    frame_bytes = 2 * num_channels
    layout = struct.pack("<IHHIIHH", 16, 1, num_channels, rate_hz, rate_hz * frame_bytes % 2**32, frame_bytes, 16)
    size = min(claimed_bytes + 36, 2**32 - 1)
    return (
        b"RIFF"
        + struct.pack("<I", size)
        + b"WAVEfmt "
        + layout
        + b"data"
        + struct.pack("<I", claimed_bytes)
        + bytes(num_bytes)
    )


def encoded(container: str, subtype: str, samples: np.ndarray, rate_hz: int = 16000, **options: object) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype, **options)
    return buffer.getvalue()


def flac_claiming(num_frames: int, true_frames: int = 32000) -> bytes:
    """A FLAC with another total sample count in STREAMINFO (36 bits from byte 21)."""
    data = bytearray(encoded("FLAC", "PCM_16", noise(true_frames)))
    data[21] = data[21] & 0xF0 | num_frames >> 32
    data[22:26] = struct.pack(">I", num_frames & 0xFFFFFFFF)
    return bytes(data)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zero bytes": ("AUDIO_EMPTY", lambda: b""),
    "three bytes": ("AUDIO_UNSUPPORTED", lambda: b"RIF"),
    "text named wav": ("AUDIO_UNSUPPORTED", lambda: "שלום לך\n".encode() * 100),
    "m4a": ("AUDIO_UNSUPPORTED", lambda: b"\0\0\0\x20ftypM4A " + bytes(2000)),
    "webm": ("AUDIO_UNSUPPORTED", lambda: b"\x1aE\xdf\xa3" + bytes(2000)),
    "aac stream": ("AUDIO_UNSUPPORTED", lambda: b"\xff\xf1\x50\x80" + bytes(2000)),
    "only a wav header": ("AUDIO_EMPTY", lambda: riff(claimed_bytes=0, num_bytes=0)),
    "wav without chunks": ("AUDIO_UNREADABLE", lambda: b"RIFF\x04\0\0\0WAVE"),
    "wav cut off": ("AUDIO_TRUNCATED", lambda: half(encoded("WAV", "PCM_16", noise(16000)))),
    "aiff cut off": ("AUDIO_TRUNCATED", lambda: half(encoded("AIFF", "PCM_16", noise(16000)))),
    "flac cut off": ("AUDIO_TRUNCATED", lambda: half(encoded("FLAC", "PCM_16", noise(32000)))),
    "mp3 cut off": ("AUDIO_TRUNCATED", lambda: half(encoded("MP3", "MPEG_LAYER_III", noise(32000)))),
    "flac claiming 256 GiB": ("AUDIO_HEADER", lambda: flac_claiming(2**36 - 1)),
    "flac claiming an hour": ("AUDIO_TRUNCATED", lambda: flac_claiming(3600 * 16000)),
    "flac claiming one sample more": ("AUDIO_TRUNCATED", lambda: flac_claiming(32001)),
    "flac without a length": ("AUDIO_HEADER", lambda: flac_claiming(0)),
    "flac header only": ("AUDIO_TRUNCATED", lambda: flac_claiming(32000)[:42]),
    "1024 channels": ("AUDIO_HEADER", lambda: riff(num_channels=1024, claimed_bytes=20480, num_bytes=20480)),
    "rate 0": ("AUDIO_UNREADABLE", lambda: riff(rate_hz=0)),
    "rate 2^31-1": ("AUDIO_HEADER", lambda: riff(rate_hz=2**31 - 1)),
    "rate 100 Hz": ("AUDIO_HEADER", lambda: riff(rate_hz=100)),
    "id3 tag without sound": ("AUDIO_UNREADABLE", lambda: b"ID3\x04\0\0\0\0\0\x0a" + bytes(3000)),
    "ogg page of zeros": ("AUDIO_UNREADABLE", lambda: b"OggS" + bytes(3000)),
}


@pytest.mark.parametrize(("reason", "build"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_with_its_reason_on_one_line(
    tmp_path: Path, reason: str, build: Callable[[], bytes]
) -> None:
    path = tmp_path / "bad\nname.wav"
    path.write_bytes(build())
    with pytest.raises(AudioError) as caught:
        probe_audio(path)
    assert caught.value.reason == reason
    message = str(caught.value)
    assert "bad\\nname.wav" in message
    assert "\n" not in message
    with pytest.raises(AudioError):
        load_audio(path)


DAMAGED = {
    "NaN": ("AUDIO_NOT_FINITE", np.nan),
    "infinity": ("AUDIO_NOT_FINITE", np.inf),
    "scale of 16-bit integers": ("AUDIO_OVER_RANGE", 20000.0),
    "1e38": ("AUDIO_OVER_RANGE", 1e38),
}


@pytest.mark.parametrize(("reason", "value"), DAMAGED.values(), ids=DAMAGED.keys())
def test_float_samples_must_be_finite_and_on_scale(tmp_path: Path, reason: str, value: float) -> None:
    samples = tone(90_000, 16000)
    samples[80_000] = value
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert probe_audio(tmp_path / "a.wav").encoding == "FLOAT"
    with pytest.raises(AudioError) as caught:
        load_audio(tmp_path / "a.wav")
    assert caught.value.reason == reason
    assert len(load_audio(tmp_path / "a.wav", 0.0, 4.0)) == 64_000, "the sound part of the file stays usable"


def test_what_is_not_a_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    cases = {
        tmp_path / "fifo.wav": "AUDIO_NOT_A_FILE",
        tmp_path: "AUDIO_NOT_A_FILE",
        Path("/dev/zero"): "AUDIO_NOT_A_FILE",
        tmp_path / "absent.wav": "AUDIO_MISSING",
        tmp_path / "absent.wav" / "below.wav": "AUDIO_MISSING",
        tmp_path / "loop.wav": "AUDIO_UNREADABLE",
        tmp_path / ("x" * 300): "AUDIO_UNREADABLE",
        Path("nul\0byte.wav"): "AUDIO_UNREADABLE",
    }
    for path, reason in cases.items():
        with pytest.raises(AudioError) as caught:
            load_audio(path)
        assert caught.value.reason == reason, path


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 16000), 16000)
    with pytest.raises(AudioError) as caught:
        probe_audio(tmp_path / "a.wav", max_file_mib=0.01)
    assert caught.value.reason == "AUDIO_TOO_LARGE"


def test_an_audio_error_survives_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(AudioError("AUDIO_EMPTY", "a.wav has 0 bytes")))  # noqa: S301  our own bytes
    assert (error.reason, str(error)) == ("AUDIO_EMPTY", "a.wav has 0 bytes")


ENCODINGS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), ENCODINGS)
@pytest.mark.parametrize("rate_hz", [8000, 16000, 48000])
def test_probe_gives_the_exact_length_that_was_written(
    tmp_path: Path, container: str, subtype: str, rate_hz: int
) -> None:
    num_frames = 3 * rate_hz + 1234
    (tmp_path / "a").write_bytes(encoded(container, subtype, noise(num_frames), rate_hz))
    info = probe_audio(tmp_path / "a")
    assert info == (num_frames / rate_hz, rate_hz, 1, num_frames, container.lower(), subtype)
    assert len(load_audio(tmp_path / "a")) == round(num_frames * SAMPLE_RATE_HZ / rate_hz)


@pytest.mark.parametrize(("container", "subtype"), ENCODINGS)
@pytest.mark.parametrize("offset_seconds", [0.0, 0.0501, 2.7, 5.99, 9.81, 9.95])
def test_a_stretch_is_cut_to_the_sample(tmp_path: Path, container: str, subtype: str, offset_seconds: float) -> None:
    """At 16 kHz nothing is resampled, so the stretch must equal a slice of the whole; 1e-6 is MP3's decoder state."""
    path = tmp_path / "a"
    path.write_bytes(encoded(container, subtype, noise(160_000)))
    whole = load_audio(path)
    first = round(offset_seconds * SAMPLE_RATE_HZ)
    stretch = load_audio(path, offset_seconds, 0.04)
    np.testing.assert_allclose(stretch, whole[first : first + 640], rtol=0, atol=1e-6)


def test_a_stretch_ends_inside_its_file_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(32000, 16000), 16000)
    assert len(load_audio(path, 1.0)) == 16000
    assert len(load_audio(path, 1.5, 0.53)) == 8000, "rounded manifest times reach a little beyond the end"
    for offset, duration in [(1.5, 0.6), (2.5, None), (-0.1, 1.0), (0.0, 0.0), (0.0, -1.0), (2.0, None)]:
        with pytest.raises(AudioError) as caught:
            load_audio(path, offset, duration)
        assert caught.value.reason == "AUDIO_STRETCH", (offset, duration)
    for offset, duration in [(float("nan"), 1.0), (0.0, float("inf")), (float("inf"), None)]:
        with pytest.raises(AudioError, match="is not inside"):
            load_audio(path, offset, duration)


def test_a_bomb_is_read_only_as_far_as_asked(tmp_path: Path) -> None:
    """Two hours of digital silence are 360 kB of FLAC; whole they are refused, a stretch of them is fine."""
    path = tmp_path / "bomb.flac"
    with soundfile.SoundFile(path, "w", 16000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(72):
            file.write(np.zeros(1_600_000, dtype=np.int16))
    assert path.stat().st_size < 400_000
    assert probe_audio(path).duration_seconds == 7200
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    assert caught.value.reason == "AUDIO_TOO_LARGE"
    assert len(load_audio(path, 7000.0, 10.0)) == 160_000


def test_stereo_at_44_1_khz_becomes_its_mean_at_16_khz(tmp_path: Path) -> None:
    """Left is 440 Hz, right is 1000 Hz: the mean holds both at half amplitude, at the right places in the spectrum."""
    rate_hz = 44_100
    stereo = np.stack([tone(2 * rate_hz, rate_hz, 440), tone(2 * rate_hz, rate_hz, 1000)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, rate_hz)
    samples = load_audio(tmp_path / "a.flac")
    assert samples.dtype == np.float32
    assert samples.shape == (32_000,)
    amplitude = np.abs(np.fft.rfft(samples * np.hanning(32_000))) / 8_000  # bins of 0.5 Hz
    assert amplitude[880] == pytest.approx(0.15, rel=0.01)
    assert amplitude[2000] == pytest.approx(0.15, rel=0.01)


def test_reading_in_blocks_leaves_no_seam(tmp_path: Path) -> None:
    """Half a minute spans many blocks; a tone stays a tone at every sample after resampling."""
    soundfile.write(tmp_path / "a.wav", tone(30 * 44_100, 44_100), 44_100, subtype="FLOAT")
    samples = load_audio(tmp_path / "a.wav")
    expected = tone(len(samples), SAMPLE_RATE_HZ)
    assert np.abs(samples - expected)[1000:-1000].max() < 1e-3


def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Encoders that write to a pipe leave the largest size in the header."""
    data = bytearray(riff(num_bytes=32_000, claimed_bytes=2**32 - 1))
    (tmp_path / "a.wav").write_bytes(data)
    assert probe_audio(tmp_path / "a.wav").num_frames == 16_000


MP3_OPTIONS = {
    "constant": {"bitrate_mode": "CONSTANT", "compression_level": 0.5},
    "variable": {"bitrate_mode": "VARIABLE", "compression_level": 0.9},
    "average": {"bitrate_mode": "AVERAGE", "compression_level": 0.1},
}


def without_tag(data: bytes) -> bytes:
    first = mp3.parse_frame_header(data[:4])
    assert first is not None
    return data[first.num_bytes :]


@pytest.mark.parametrize("options", MP3_OPTIONS.values(), ids=MP3_OPTIONS.keys())
@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100, 48000])
def test_an_mp3_without_length_tag_keeps_all_its_audio(
    tmp_path: Path, rate_hz: int, options: dict[str, object]
) -> None:
    """libsndfile alone guesses from the first frame and loses up to three quarters of the variable ones.

    Without the tag the padding of the encoder counts as sound: up to four frames more than was written.
    """
    num_frames = 7 * rate_hz
    changing = noise(num_frames) * np.linspace(0, 1, num_frames, dtype=np.float32)
    tagged = encoded("MP3", "MPEG_LAYER_III", changing, rate_hz, **options)
    (tmp_path / "tagged.mp3").write_bytes(tagged)
    (tmp_path / "bare.mp3").write_bytes(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + without_tag(tagged))
    samples_per_frame = 1152 if rate_hz > 24_000 else 576
    info = probe_audio(tmp_path / "bare.mp3")
    assert probe_audio(tmp_path / "tagged.mp3").num_frames == num_frames
    assert 0 <= info.num_frames - num_frames < 4 * samples_per_frame
    assert abs(len(load_audio(tmp_path / "bare.mp3")) / SAMPLE_RATE_HZ - info.duration_seconds) <= 0.05


def test_joined_mp3_files_are_as_long_as_both(tmp_path: Path) -> None:
    """The tag of the first part counts only the first part."""
    part = encoded("MP3", "MPEG_LAYER_III", tone(64_000, 16000))
    (tmp_path / "both.mp3").write_bytes(part + part)
    assert probe_audio(tmp_path / "both.mp3").duration_seconds == pytest.approx(8.0, abs=0.3)
    assert len(load_audio(tmp_path / "both.mp3")) / SAMPLE_RATE_HZ == pytest.approx(8.0, abs=0.3)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_written_audio_comes_back_rounded_to_16_bits(tmp_path: Path, suffix: str) -> None:
    samples = np.concatenate([noise(16000), np.array([1.5, -1.5, 1 / 32768], dtype=np.float32)])
    path = tmp_path / "new folder" / f"a{suffix}"
    write_audio(path, samples)
    expected = np.clip(np.rint(samples * 32768), -32768, 32767) / 32768
    np.testing.assert_array_equal(load_audio(path), expected.astype(np.float32))
    first = path.read_bytes()
    write_audio(path, samples)
    assert path.read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_writing_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    for path, samples in [
        ("a.mp3", noise(100)),
        ("a.wav", noise(100, num_channels=2)),
        ("a.wav", np.full(10, np.nan, dtype=np.float32)),
    ]:
        with pytest.raises(ValueError, match=r"a\."):
            write_audio(tmp_path / path, samples)
    assert not list(tmp_path.iterdir())
