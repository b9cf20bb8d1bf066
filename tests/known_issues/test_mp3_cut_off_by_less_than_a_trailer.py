"""An MP3 that had lost up to 4 kB, a second of speech at 32 kbit/s, passed `prepare` with all its announced length."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from caspi.speech.corpora.audio import AudioError, probe_audio


@pytest.mark.parametrize("num_lost", [500, 2000, 3900])
def test_an_mp3_that_lost_its_end_is_cut_off_however_little_it_lost(num_lost: int, tmp_path: Path) -> None:
    encoded = io.BytesIO()
    soundfile.write(encoded, 0.1 * np.random.default_rng(0).standard_normal(48_000), 16_000, format="MP3")
    path = tmp_path / "a.mp3"
    path.write_bytes(encoded.getvalue())
    assert probe_audio(path).duration_seconds == 3.0
    path.write_bytes(encoded.getvalue()[:-num_lost])
    with pytest.raises(AudioError) as caught:
        probe_audio(path)
    assert caught.value.reason == "AUDIO_TRUNCATED"
