"""`caspi env` and `source scripts/setup_wandb.sh`: answers become exports, failures never end the user's shell."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
TRACKING = ("WANDB_PROJECT", "WANDB_RUN_NAME", "WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "CUDA_VISIBLE_DEVICES")


def source_setup(shell: str, answers: str, settings: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Source the script in a shell without tracking variables, then run `script` in the same shell."""
    command = [shell, "-c", f"source {ROOT}/scripts/setup_wandb.sh; {script}"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(settings.parent), "CASPI_ENV_FILE": str(settings)}
    environment |= {"VIRTUAL_ENV": str(ROOT / ".venv")}
    return subprocess.run(command, input=answers, env=environment, text=True, capture_output=True, check=False)


@pytest.mark.parametrize("shell", SHELLS)
def test_answers_from_a_pipe_set_the_variables(shell: str, tmp_path: Path) -> None:
    result = source_setup(
        shell, "y\nhebrew\nrun 7\nn\noffline\n", tmp_path / "env", 'echo "[$WANDB_PROJECT|$WANDB_RUN_NAME|$WANDB_MODE]"'
    )
    assert "[hebrew|run 7|offline]" in result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_a_bad_answer_leaves_the_shell_alive_and_exports_nothing(shell: str, tmp_path: Path) -> None:
    result = source_setup(shell, "perhaps\n", tmp_path / "env", 'echo "status $? [$WANDB_PROJECT]"; false; echo alive')
    assert "status 1 []" in result.stdout
    assert "alive" in result.stdout
    assert "'perhaps' is neither y nor n" in result.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_declining_wandb_disables_it(shell: str, tmp_path: Path) -> None:
    result = source_setup(shell, "n\n", tmp_path / "env", 'echo "[$WANDB_DISABLED|$CUDA_VISIBLE_DEVICES]"')
    assert "[true|0,1]" in result.stdout


def test_a_name_with_shell_syntax_is_refused(tmp_path: Path) -> None:
    result = source_setup("bash", "y\n$(touch /tmp/x)\n", tmp_path / "env", "true")
    assert "is not a name" in result.stderr


def test_tokens_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caspi.cli import main

    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("sys.stdin", (tmp_path / "answers").open("w+"))
    settings = tmp_path / "settings"
    assert main(["env", "--output", str(settings)]) == 0
    written = settings.read_text()
    assert "kkkk" not in written
    assert "hf_secret" not in written
    assert stat.S_ISREG(settings.stat().st_mode)
