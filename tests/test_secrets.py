"""Tokens in the environment reach no file and no line that a step prints."""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile
from limited import caspi

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfHuggingFace0123456789",
    "WANDB_API_KEY": "feedface" * 5,
    "OPENAI_API_KEY": "sk-planted-key-of-a-server-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/of/a/bucket/0123456789",
}
REAL_RUN = Path(__file__).parent / "data" / "watch_run"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the tokens in the environment, some audio and a training run."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        soundfile.write(tmp_path / "clips" / f"{index}.wav", 0.1 * rng.standard_normal(24_000), 16_000)
        (tmp_path / "clips" / f"{index}.txt").write_text("שלום עולם", encoding="utf-8")
    (tmp_path / "clips" / "4.wav").write_bytes(b"")
    (tmp_path / "clips" / "4.txt").write_text("כן", encoding="utf-8")
    shutil.copytree(REAL_RUN, tmp_path / "run")
    return tmp_path


QUICK = [
    ("check", "--timeout-seconds", "1", "--json"),
    ("plan",),
    ("prepare", "--datasets", "clips"),
    ("gate",),
    ("train", "--output-dir", "elsewhere", "--base-model", "nowhere"),
    ("watch", "run", "--once"),
    ("watch", "run", "--page"),
    ("watch", "run", "--bundle", "help.tar.gz"),
    ("rollback", "--option", "conservative", "--conservative-recipe", "no.toml", "--run-dir", "run"),
]
SLOW = [
    ("check", "--timeout-seconds", "1"),
    ("audit", "--backend", "uniform", "--sample-rate", "1", "--num-processes", "1"),
    ("gate", "--accept-risk", "a test"),
    ("train", "--output-dir", "elsewhere", "--base-model", "nowhere"),
    ("evaluate", "--server", "http://127.0.0.1:9/v1", "--test-sets", "t=data/manifest.jsonl"),
    ("compare", "--round1-model", "nothing", "--round2-model", "nothing"),
    ("export", "--run-dir", "run"),
    ("rollback", "--to", "run", "--backup", "logs", "--run-dir", "run", "--no-serve"),
]


@pytest.mark.parametrize("commands", [QUICK, pytest.param([*QUICK, *SLOW], marks=pytest.mark.slow)], ids=len)
def test_no_token_is_printed_or_written_by_any_step(commands: list[tuple[str, ...]], folder: Path) -> None:
    answers = folder / "answers"
    answers.write_text("y\nproject\nname\ny\nonline\n")
    with answers.open() as stdin:
        printed = [caspi("env", folder=folder, stdin=stdin).printed]
    printed += [caspi(*command, folder=folder, extra_memory_mib=4096).printed for command in commands]
    shutil.unpack_archive(folder / "help.tar.gz", folder / "unpacked")
    for archive in (folder / "backups").glob("*.tar.gz"):
        shutil.unpack_archive(archive, folder / "unpacked")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {".caspi.env", "manifest.jsonl", "run.html", "report.txt"}
    for secret in SECRETS.values():
        assert not [text for text in printed if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_the_file_of_settings_is_its_owners_alone_from_its_first_moment(folder: Path) -> None:
    (folder / ".caspi.env").write_text("export OLD=1\n")
    (folder / ".caspi.env").chmod(0o666)
    answers = folder / "answers"
    answers.write_text("n\n")
    with answers.open() as stdin:
        assert caspi("env", folder=folder, stdin=stdin).exit_code == 0
    assert stat.S_IMODE((folder / ".caspi.env").stat().st_mode) == 0o600


def test_what_a_step_writes_for_others_to_read_is_not_writable_by_them(folder: Path) -> None:
    assert caspi("prepare", "--datasets", "clips", folder=folder).exit_code == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "data").iterdir()}
    assert modes == dict.fromkeys(("manifest.jsonl", "quarantine.jsonl", "prepare_summary.json"), 0o644)
    assert json.loads((folder / "data" / "prepare_summary.json").read_text())["num_rejected"] == 1
