"""The exported original layout in the unmodified qwen-asr package, in an environment of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from caspi.config import Export, Recipe
from caspi.export import run
from caspi.model.checkpoints.checkpoint import load_asr
from caspi.model.checkpoints.export_layouts import save_layout
from caspi.model.tiny import tiny_base
from caspi.model.transcribers.local import transcribe
from caspi.speech.corpora.audio import load_audio, write_audio
from caspi.speech.synthetic.synth import lexicon

PACKAGES = ("qwen-asr==0.0.6", "transformers==4.57.6")
WHEELS = Path("/opt/wheels")
"""Where a CPU build of torch may lie; the one on PyPI brings gigabytes of CUDA."""
TRANSCRIBE = """
import functools, json, sys
import torch, transformers, qwen_asr
from qwen_asr import Qwen3ASRModel
from qwen_asr.inference.utils import SUPPORTED_LANGUAGES, detect_and_fix_repetitions, normalize_audios

torch.set_num_threads(1)
folder, clips, max_new_tokens = sys.argv[1], sys.argv[2:-1], int(sys.argv[-1])
SUPPORTED_LANGUAGES.append("Hebrew")
model, info = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
asr = Qwen3ASRModel.from_pretrained(folder, dtype=torch.float32, max_new_tokens=max_new_tokens)
# Its generate() defaults to the end tokens of the 1.7B, which are not in a tiny vocabulary.
ends = json.load(open(folder + "/generation_config.json"))["eos_token_id"]
asr.model.generate = functools.partial(asr.model.generate, eos_token_id=ends)
results = asr.transcribe(clips, language="Hebrew")
raw = asr._infer_asr([""] * len(clips), normalize_audios(clips), ["Hebrew"] * len(clips))
# What its transcribe() makes of a raw text: loops are collapsed, which ours are not.
assert [one.text for one in results] == [detect_and_fix_repetitions(text.strip()) for text in raw]
versions = {"transformers": transformers.__version__, "torch": torch.__version__}
print("RESULT " + json.dumps({"texts": raw, "problems": problems, "versions": versions}))
"""
MAX_NEW_TOKENS = 48


@pytest.fixture(scope="module")
def qwen_asr_python() -> Path:
    """Python of an environment with the published package; kept in the cache between runs."""
    uv = shutil.which("uv") or str(Path(sys.executable).parents[2] / ".uv" / "bin" / "uv")
    if not Path(uv).exists():
        pytest.skip("uv is not there to install qwen-asr")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    environment = Path(os.environ.get("CASPI_QWEN_ASR_ENV", cache / "caspi-tests" / "qwen-asr-0.0.6"))
    python = environment / "bin" / "python"
    if not python.exists():
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    wheels = ["--find-links", str(WHEELS), "torch==2.13.0+cpu"] if WHEELS.is_dir() else []
    command = [uv, "pip", "install", "-q", "--python", str(python), *wheels, *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"qwen-asr cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


def speech_like_clips(folder: Path) -> list[Path]:
    """Five clips of 1 to 3 s: gliding tones and noise with pauses."""
    rng = np.random.default_rng(11)
    paths = []
    for index in range(5):
        times = np.arange(int(16_000 * (1 + 0.5 * index))) / 16_000
        tone = np.sin(2 * np.pi * (200 + 150 * index) * times * (1 + 0.1 * times))
        gate = (np.sin(2 * np.pi * 3 * times) > -0.3).astype(np.float32)
        samples = (0.2 * tone * gate + 0.02 * rng.standard_normal(times.size)).astype(np.float32)
        paths.append(folder / f"clip{index}.wav")
        write_audio(paths[-1], samples)
    return paths


def export_random(folder: Path) -> tuple[Path, list[Path]]:
    """A made run through `caspi export`, and tones: texts without sense, in which any difference shows."""
    run_dir = make_run(folder)
    fields = {"run_dir": run_dir, "output": folder / "out", "dtype": "float32", "layout": "both", "max_new_tokens": 8}
    run(Recipe(export=Export.model_validate(fields)))
    return run_dir / "checkpoint-200", speech_like_clips(folder)


def export_base(folder: Path) -> tuple[Path, list[Path]]:
    """The checkpoint that ships, and Hebrew speech that it transcribes."""
    if not tiny_base().is_dir():
        pytest.skip("the tiny base checkpoint does not ship yet")
    speak = pytest.importorskip("caspi.speech.synthetic.espeak").speak
    model, processor = load_asr(tiny_base())
    options = {"language": "Hebrew", "max_shard_size": "5GB"}
    save_layout("original", model, processor, folder / "out" / "original", **options)
    clips = []
    for index, words in enumerate(lexicon()[start : start + 4] for start in range(0, 20, 4)):
        clips.append(folder / f"speech{index}.wav")
        write_audio(clips[-1], speak(words, voice=f"he+f{index % 3 + 1}").samples)
    return tiny_base(), clips


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("export_model", [export_random, export_base])
def test_qwen_asr_gives_the_texts_of_the_exported_original_layout(
    export_model: Callable[[Path], tuple[Path, list[Path]]], tmp_path: Path, qwen_asr_python: Path
) -> None:
    source, clips = export_model(tmp_path)
    model, processor = load_asr(source)
    audios = [load_audio(path) for path in clips]
    results = transcribe(
        model, processor, audios, language="Hebrew", batch_size=len(clips), max_new_tokens=MAX_NEW_TOKENS
    )

    arguments = [str(tmp_path / "out" / "original"), *map(str, clips), str(MAX_NEW_TOKENS)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(qwen_asr_python), "-c", TRANSCRIBE, *arguments], capture_output=True, text=True, env=environment
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    assert found["versions"]["transformers"] == "4.57.6"
    assert found["problems"] == {}
    assert len({one.text for one in results}) > 1, "the clips must not all give one text"
    assert found["texts"] == [one.text for one in results]
