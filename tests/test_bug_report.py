"""`caspi watch --bundle`: what the guide's "Getting Help" asks for, and no secret."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from caspi.cli import main
from caspi.ops.watching.redaction import REDACTED, redact

REAL_RUN = Path(__file__).parent / "data" / "watch_run"
HF_TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
WANDB_KEY = "0123456789abcdef0123456789abcdef01234567"
OWN_SECRET = "correct-horse-battery"
SECRETS = (HF_TOKEN, WANDB_KEY, OWN_SECRET, "dXNlcjpwYXNz", "hunter2hunter2")


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of a bundle, of a real run that has secrets in every file it reads."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", OWN_SECRET)
    run_dir = Path(shutil.copytree(REAL_RUN, tmp_path / "run"))
    run = json.loads((run_dir / "run.json").read_text())
    run["recipe"]["train"]["base_model"] = f"https://user:hunter2hunter2@hub.example/{HF_TOKEN}"
    run["wandb_url"] = "https://wandb.ai/someone/qwen3-asr-hebrew/runs/d55c2d294acc"
    run |= {"state": "training"}
    (run_dir / "run.json").write_text(json.dumps(run))
    (run_dir / ".lock").write_text("1")
    with (run_dir / "metrics.jsonl").open("a") as metrics:
        metrics.write(
            json.dumps({"alert": "X", "message": f"api_key={WANDB_KEY}", "step": 250, "time": 1795356907}) + "\n"
        )
    with (run_dir / "training.log").open("a") as log:
        log.write("2026-11-22 14:15:07,000 ERROR it broke\nTraceback (most recent call last):\n  File one\n")
        log.write(
            f"Authorization: Basic dXNlcjpwYXNz\nheaders={{'authorization': 'Bearer {HF_TOKEN}'}}\n{OWN_SECRET}\n"
        )
        log.write(f"WANDB_API_KEY={WANDB_KEY}\nRuntimeError: the last line\n")
    target = tmp_path / "help.tar.gz"
    assert main(["watch", str(run_dir), "--bundle", str(target), "--price", "3.2"]) == 0
    with tarfile.open(target) as archive:
        members = archive.getmembers()
        assert all(one.isfile() and one.name.startswith("help/") for one in members)
        streams = {one.name.removeprefix("help/"): archive.extractfile(one) for one in members}
        return {name: stream.read().decode() for name, stream in streams.items() if stream is not None}


def test_no_secret_is_in_it(bundle: dict[str, str]) -> None:
    for name, text in bundle.items():
        for secret in SECRETS:
            assert secret not in text, f"{secret} in {name}"
    assert bundle["training_log_tail.txt"].count(REDACTED) >= 4


def test_all_that_the_guide_asks_for_is_in_it(bundle: dict[str, str]) -> None:
    assert bundle["error.txt"].startswith("2026-11-22 14:15:07,000 ERROR it broke\nTraceback")
    assert bundle["error.txt"].endswith("RuntimeError: the last line")
    assert len(bundle["training_log_tail.txt"].splitlines()) == 50
    assert bundle["training_log_tail.txt"].endswith("RuntimeError: the last line\n")
    assert bundle["nvidia_smi.txt"].strip()
    assert "https://wandb.ai/someone/qwen3-asr-hebrew/runs/d55c2d294acc" in bundle["report.txt"]
    assert "Phase 0: PROCEED, low quality 4.0 %" in bundle["report.txt"]
    assert "Epoch: 5.00" in bundle["report.txt"]
    assert json.loads(bundle["phase0.json"])["decision"] == "PROCEED"
    versions = json.loads(bundle["versions.json"])
    assert versions["run"]["transformers"] == "5.23.0"
    assert versions["run_commit"] == "a2b936e586a3+"
    assert versions["here"]["python"]
    status = json.loads(bundle["status.json"])
    assert (status["state"], status["step"]) == ("failed", 250)
    recipe = json.loads(bundle["recipe.json"])
    original = json.loads((REAL_RUN / "run.json").read_text())["recipe"]
    original["train"]["base_model"] = recipe["train"]["base_model"]
    assert recipe == original, "nothing but the secret is taken out"


def test_a_bundle_needs_the_name_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(REAL_RUN), "--bundle", str(tmp_path / "help.zip")]) == 2
    assert ".tar.gz" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        f"token is {HF_TOKEN}.",
        f"key {WANDB_KEY}",
        f"wandb: {WANDB_KEY.upper()}",
        "wandb_v1_AbCdEfGhIjKlMnOpQrStUvWxYz_0123456789",
        "Authorization: Bearer abcdefghijklmnop",
        '"authorization": "Token abcdefghijklmnop"',
        "curl -H 'Proxy-Authorization: Basic YWJjZGVmZ2hpamtsbW5vcA=='",
        "sk-abcdefghijklmnopqrstuvwx",
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "https://someone:abcdefghijklmnop@proxy.example:3128/",
        "HF_TOKEN=abcdefghijklmnop",
        '{"api_key": "abcdefghijklmnop"}',
        r"{\"secret\": \"abcdefghijklmnop\"}",
        "password: abcdefghijklmnop",
        "AWS_SECRET_ACCESS_KEY='abcdefghijklmnop'",
        "https://host/?token=abcdefghijklmnop&x=1",
    ],
)
def test_secrets_of_every_kind_are_taken_out(text: str) -> None:
    clean = redact(text, {})
    assert REDACTED in clean
    secrets = ("abcdefghijklmnop", "AbCdEfGhIj", "YWJjZGVm", WANDB_KEY, WANDB_KEY.upper(), "ABCDEFGHIJKLMNOP")
    assert not [one for one in secrets if one in clean]


@pytest.mark.parametrize(
    "text",
    [
        '"max_new_tokens": 256, "target_tokens_per_second": 4.0',
        "sha256 313dc305a7a7bc1180642e88029d93f3cc81c9d6a7cfffa989e61a9120d53c12",
        "[Step 110/250] loss: 0.5256, grad_norm: 8.27, 131.1 samples/s",
        "tokenizer.json, https://wandb.ai/a/b/runs/d55c2d294acc",
        "שלום: token",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text, {"TOKENIZERS_PARALLELISM": "false"}) == text


def test_values_of_secret_variables_are_taken_out_wherever_they_are() -> None:
    assert redact("x opensesame42 y", {"MY_PASSWORD": "opensesame42"}) == f"x {REDACTED} y"
