"""Every command in README and docs: understood by the real parser by default, and run by `pytest -m slow`.

The commands of a page run one after the other in one shell, as a reader runs them, in a folder with a small synthetic
corpus; one flag is added to each, a recipe that says what is smaller here than in Round 2.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import commands_of, words_of

from caspi.cli import STEPS, parse
from caspi.records import read_jsonl

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.relative_to(ROOT / 'docs')}" for path in sorted((ROOT / "docs").rglob("*.md")))]
RUN_PAGES = ["README.md", "docs/guide.md", "docs/troubleshooting.md"]
TOOLS = ("jq", "tail", "export", "wandb")
"""Programs other than caspi that the pages use."""
NOT_RUN = {
    r"make (setup|demo|test)\b.*": "what installs and tests this very checkout",
    r"source \.venv/bin/activate": "the tests run in that environment",
    r"source scripts/setup_wandb\.sh": "run under bash and zsh by tests/test_env.py",
    r"tail -f .*": "never ends",
    r"caspi check --fetch.*": "downloads gigabytes",
    r"caspi prepare": "downloads the two datasets of the guide",
    r"caspi demo.*": "run by tests/test_flow.py and tests/test_rehearsal.py",
    r"caspi launch.*": "rents machines; tests/test_launch.py runs it against the real sky package",
    r"caspi .*(s3|gs|hf)://.*": "needs a bucket; tests/test_mirror_s3.py runs it against a real S3 server",
    r"caspi .*--server .*": "needs a server; tests/test_serving.py runs it against a real one",
    r"caspi .*--engine ray.*": "needs a Ray cluster; tests/test_ray_workers.py runs it on one",
    r"caspi .*--push-to-hub.*": "uploads; tests/test_hub.py runs it against a server of its own",
    r"(PET_\w+=\S+ )+caspi train.*": "needs several machines; tests/test_processes.py runs two processes",
    r"caspi audit --labels .*": "needs labels that a listener exported; tests/test_audit_page.py runs the whole review",
    r"caspi audit --gold .*": "needs clips labelled elsewhere; tests/test_references.py has them",
    r"wandb sync.*": "uploads",
    r"python -m benchmarks\.gpu .*": "needs a GPU; tests/test_benchmarks.py rehearses it on a tiny model",
}
"""Commands that only the parser sees, and why."""
EXIT_CODES = {"check": (0, 1), "gate": (0, 1), "compare": (0, 1), "watch": (0, 1), "audit": (0, 1)}
"""By step, where more than 0 is an answer on a machine without GPU and on data this small."""
SMALL = """
[audit]
manifest = "data/manifest.jsonl"
backend = "tts-dtw"
sample_rate = 1.0
num_samples = 96
[audit.calibration]
num_control_utterances = 40
[train]
base_model = "round1"
accept_risk = "a test of the documents"
yes = true
num_llm_top_layers = 2
num_audio_top_layers = 2
batch_size = 16
gradient_accumulation_steps = 1
eval_steps = 10
logging_steps = 5
max_wer_utterances = 8
max_new_tokens = 32
[[train.stages]]
name = "B"
num_epochs = 1
learning_rates = { projector = 2e-3, llm_top = 1e-3, lm_head = 1e-3 }
[[train.stages]]
name = "A"
num_epochs = 1
learning_rates = { projector = 2e-3, audio_top = 2e-3, llm_top = 1e-3, lm_head = 1e-3 }
[evaluate]
test_sets = ["eval-d1=sets/eval-d1/corpus.jsonl", "eval-whatsapp=sets/eval-whatsapp/corpus.jsonl"]
max_new_tokens = 32
[compare]
round1_model = "round1"
train_run = "qwen3-asr-hebrew-round2"
[rollback]
round1_model = "round1"
serve = false
conservative_recipe = "conservative.toml"
"""
SMALLER = {"checkpoint-1000": "checkpoint-10", "--num-llm-top-layers 16": "--num-llm-top-layers 3"}
"""Numbers of the pages that the small run does not reach."""
SHELL = """
set -u
caspi() { "$PYTHON" -m caspi "$@" --recipe "$RECIPE"; }
"""
"""What a page's commands find: `caspi` with one flag more."""


def commands_on(page: str) -> list[str]:
    return commands_of((ROOT / page).read_text(encoding="utf-8"))


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, command)), None)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_we_run_or_say_why_not(page: str) -> None:
    for command in commands_on(page):
        program, *flags = words_of(command)
        if program == "caspi":
            assert flags[0] in STEPS, f"{page}: {command}"
            parse(flags[0], flags[1:])
        else:
            known = program in TOOLS or reason_not_to_run(command) is not None
            assert known or (page not in RUN_PAGES and program in ("make", "pytest")), f"{page}: {command}"


def test_every_caspi_command_in_the_running_text_is_understood() -> None:
    """`caspi step --flag value` between backticks; a fragment that ends in the middle is no command."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for command in re.findall(r"`(caspi [a-z]+(?: [^`]*)?)`", text):
            step, *flags = words_of(command)[1:]
            if step in STEPS and not re.search(r"\b[A-Z_]{3,}\b|\.\.\.|--help", command):
                parse(step, flags)


def test_every_exception_is_needed() -> None:
    commands = [command for page in RUN_PAGES for command in commands_on(page)]
    used = {pattern for pattern in NOT_RUN if any(re.fullmatch(pattern, command) for command in commands)}
    assert len(used) >= 6, "a list that matches nothing excuses nothing"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: sound files with texts, a manifest of the same, models, test sets."""
    from caspi.model.assets import TINY_BASE
    from caspi.speech.synthetic.synth_corpus import CorpusRow, plan_test_sets, plan_training_corpus, write_corpus

    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(TINY_BASE, folder / "round1")
    shutil.copyfile(ROOT / "recipes" / "conservative.toml", folder / "conservative.toml")
    shares = {"kan_clean": 0.5, "whatsapp_noisy": 0.5}
    plans = plan_training_corpus(120, 8, seed=5, vocabulary_size=39, num_words=(4, 6), domain_shares=shares)  # type: ignore[arg-type]
    write_corpus(folder / "raw", plans, num_processes=1)
    (folder / "my_clips").mkdir()
    rows = []
    for row in read_jsonl(folder / "raw" / "corpus.jsonl", CorpusRow):
        source = folder / "raw" / row.audio_filepath
        target = folder / "my_clips" / f"{row.id}{source.suffix}"
        shutil.copyfile(source, target)
        target.with_suffix(".txt").write_text(row.text, encoding="utf-8")
        rows.append({**row.model_dump(exclude_none=True), "audio_filepath": f"my_clips/{target.name}"})
    (folder / "my_corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, planned in plan_test_sets(6, seed=5, vocabulary_size=39).items():
        write_corpus(folder / "sets" / name, planned, num_processes=1)
    (folder / "small.toml").write_text(SMALL, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.espeak
@pytest.mark.timeout(3000)
def test_the_commands_of_the_pages_do_what_the_pages_say(place: Path, tmp_path: Path) -> None:
    """README by itself, and the guide with the troubleshooting that follows it."""
    folders = {"README.md": tmp_path / "readme", **dict.fromkeys(RUN_PAGES[1:], tmp_path / "guide")}
    for folder in set(folders.values()):
        shutil.copytree(place, folder)
    environment = os.environ | {"PYTHON": sys.executable, "RECIPE": "small.toml", "WANDB_DISABLED": "true"}
    num_run, wrong = 0, []
    for page in RUN_PAGES:
        for command in commands_on(page):
            if reason_not_to_run(command):
                continue
            line = command
            if page == "docs/troubleshooting.md" and command.startswith("caspi train"):
                line += f" --output-dir trouble-{num_run}"  # each is another recipe: none goes on where another was
            for ours, smaller in SMALLER.items():
                line = line.replace(ours, smaller)
            done = subprocess.run(
                ["bash", "-c", SHELL + line],
                cwd=folders[page],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            codes = EXIT_CODES.get(words_of(command)[1], (0,)) if command.startswith("caspi") else (0,)
            if done.returncode not in codes or "Traceback" in done.stderr:
                wrong.append(f"{page}: {line}: exit code {done.returncode}\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
            num_run += 1
    assert not wrong, "\n\n".join(wrong)
    assert num_run > 30
