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


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "before",
    ["export CDPATH=.:/", "set -u", 'cd() { builtin cd "$@" && echo moved; }', "alias cd='cd -P'"],
    ids=["CDPATH", "unset variables are errors", "a chatty cd", "an alias"],
)
def test_settings_of_the_users_shell_do_not_get_in_the_way(shell: str, before: str, tmp_path: Path) -> None:
    script = f'{before}; cd {ROOT}; source scripts/setup_wandb.sh; echo "[$WANDB_MODE]"; true; echo alive'
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CASPI_ENV_FILE": str(tmp_path / "env")}
    command = [shell, "-c", script]
    done = subprocess.run(command, input="y\n\n\nn\noffline\n", env=environment, text=True, capture_output=True)
    assert "[offline]" in done.stdout, done.stderr
    assert "alive" in done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_an_installation_that_is_missing_is_said_and_leaves_the_shell_alive(shell: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = (tmp_path / "scripts" / "setup_wandb.sh").resolve()
    script.write_bytes((ROOT / "scripts" / "setup_wandb.sh").read_bytes())
    command = [shell, "-c", f'source {script}; echo "status $?"']
    done = subprocess.run(command, text=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert "status 1" in done.stdout
    assert "make setup" in done.stderr


def test_cache_settings_are_kept_under_the_names_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caspi.cli import main

    monkeypatch.setenv("HF_HOME", "/large disk/cache")
    monkeypatch.setenv("HF_HUB_ENABLE_HF_TRANSFER", "1")
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)
    monkeypatch.setattr("sys.stdin", (tmp_path / "answers").open("w+"))
    assert main(["env", "--output", str(tmp_path / "settings")]) == 0
    written = (tmp_path / "settings").read_text()
    assert "export HF_HOME='/large disk/cache'" in written
    assert "export HF_XET_HIGH_PERFORMANCE=1" in written


APPENDIX_B = (
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "WANDB_PROJECT", "WANDB_RUN_NAME", "WANDB_PHASE0_LOGGING"),
    *("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "HF_TOKEN", "HF_HOME", "HF_HUB_ENABLE_HF_TRANSFER"),
)


@pytest.mark.parametrize("name", APPENDIX_B)
def test_every_variable_of_the_guides_appendix_is_documented(name: str) -> None:
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert f"| `{name}` |" in guide
