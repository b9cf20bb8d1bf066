"""`caspi demo --rehearse`: the deployment guide's whole timeline on tiny real models, with everything that goes wrong.

Each step is the command that a user types, in a process of its own. Training runs twice: once undisturbed; once with
W&B out of reach, a preemption (SIGTERM), a kill (SIGKILL) and a damaged checkpoint. At the end both are compared bit
for bit. What happened is printed and written to rehearsal.md.
"""

import json
import shutil
import signal
import socket
import time
from pathlib import Path

from caspi.config import Recipe, load_recipe
from caspi.files import read_object
from caspi.ops.rehearsing import (
    FLAGS,
    RECIPE_NAME,
    RUN,
    UNREACHABLE_KEY,
    Rehearsal,
    flip_a_bit,
    losses_of,
    newest_step,
    page,
)
from caspi.ops.training.artifacts import MARKER, checkpoint_folders, newest_checkpoint
from caspi.records import ExitCode, RunFailed, sha256_of_file, write_atomically

UNDISTURBED = "undisturbed"
REVIEWER = "caspi demo --rehearse"
WEIGHTS = "model.safetensors"
PREEMPTED_AT_STEP, KILLED_AT_STEP = 13, 33
"""Steps that must have been logged first: in the middle of strategy B and of strategy A, between two checkpoints."""


def run(shipped: Path, folder: Path) -> int:
    """Rehearse in an empty folder, with the shipped recipe.

    Raises:
        RunFailed: something went otherwise than rehearsed, or something was lost.
    """
    shutil.copyfile(shipped, folder / RECIPE_NAME)
    this = Rehearsal(folder)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        this.dead_port = reserved.getsockname()[1]
        before_the_money(this, load_recipe(folder / RECIPE_NAME))
        audit_and_gate(this)
        train_undisturbed(this)
        preempt(this)
        kill(this)
        damage(this)
        compare_runs(this)
        after_training(this)
    seconds = time.monotonic() - this.start
    write_atomically(folder / "rehearsal.md", page(this.events, seconds))
    print(
        f"\n{len(this.events)} things rehearsed in {seconds:.0f} s, nothing lost; written to {folder / 'rehearsal.md'}"
    )
    return ExitCode.DONE


def before_the_money(this: Rehearsal, recipe: Recipe) -> None:
    """The guide's prerequisites: settings, readiness, plan, corpora."""
    from caspi.model.assets import TINY_BASE
    from caspi.speech.synthetic import synth_corpus as corpora
    from caspi.speech.synthetic.defects import plant_defects

    this.caspi("env", answers="y\nqwen3-asr-hebrew\nrehearsal\ny\noffline\n")
    found = this.caspi("check", *FLAGS, "--json", codes=(0, 1))
    statuses = [item["status"] for item in json.loads(found)]
    fails = statuses.count("fail")
    this.note("readiness is checked", f"{len(statuses)} findings, {fails} fail", "caspi check --json")
    plan = json.loads(this.caspi("plan", "--gpu", "A100-40GB", "--json"))
    price, paid_hours = plan["price"]["usd_per_hour"], plan["hours"]["paid"]
    cost = f"{paid_hours:.1f} h on 2x A100-40GB at ${price:.2f}/h: ${price * paid_hours:.2f}"
    this.note("the real run is priced", cost, plan["basis"])
    shutil.copytree(TINY_BASE, this.folder / "round1")
    demo = recipe.demo
    training = corpora.plan_training_corpus(
        demo.num_train_utterances,
        demo.num_validation_utterances,
        demo.seed,
        vocabulary_size=demo.vocabulary_size,
        num_words=demo.num_words,
        domain_shares=demo.train_domain_shares,  # type: ignore[arg-type]
    )
    plans = {"train": plant_defects(training, demo.audits[0].defect_fraction, demo.seed)}
    tests = corpora.plan_test_sets(demo.num_test_utterances, demo.seed, vocabulary_size=demo.vocabulary_size)
    plans |= {name: tests[name] for name in ("eval-d1", "eval-whatsapp")}
    for name, planned in plans.items():
        corpora.write_corpus(this.folder / "corpora" / name, planned)
        flags = ("--manifest", f"corpora/{name}/corpus.jsonl", "--output", f"data/{name}")
        this.caspi("prepare", *FLAGS, *flags)


def audit_and_gate(this: Rehearsal) -> None:
    """Nobody trains before the audit, and nobody before its sign-off."""
    this.caspi("train", *FLAGS, codes=(ExitCode.NO,))
    this.caspi("audit", *FLAGS)
    refused = this.caspi("train", *FLAGS, codes=(ExitCode.NO,))
    if "no sign-off" not in refused:
        raise RunFailed(f"training was refused for another reason than the missing sign-off: {refused.strip()}")
    this.note("training is tried before audit and sign-off", "refused twice", "exit code 1")
    this.caspi("gate", *FLAGS, "--signoff", REVIEWER)


def train_undisturbed(this: Rehearsal) -> None:
    this.caspi("train", *FLAGS, "--output-dir", UNDISTURBED)


def preempt(this: Rehearsal) -> None:
    """A spot machine is taken away: SIGTERM. W&B is out of reach from the start."""
    code, printed = this.train_until(lambda: newest_step(this.run_dir) >= PREEMPTED_AT_STEP, signal.SIGTERM)
    newest, torn = newest_checkpoint(this.run_dir)
    if code != 128 + signal.SIGTERM or newest is None or torn:
        raise RunFailed(f"after SIGTERM: exit code {code}, newest checkpoint {newest}, damaged {torn}")
    outage = next((line for line in printed.splitlines() if "cannot be reached" in line), None)
    offline = list((this.run_dir / "wandb").glob("offline-run-*"))
    if outage is None or not offline:
        raise RunFailed(f"the W&B outage was not noticed: {outage}, {offline}")
    this.note("W&B cannot be reached", "training went on, offline", f"{len(offline)} run to `wandb sync` later")
    step = newest.marker.step
    this.note("preemption (SIGTERM) in strategy B", f"saved at step {step}", f"exit code {code}, {MARKER} verified")


def kill(this: Rehearsal) -> None:
    """Power fails: SIGKILL, between two checkpoints."""
    code, printed = this.train_until(lambda: newest_step(this.run_dir) >= KILLED_AT_STEP, signal.SIGKILL)
    if code != -signal.SIGKILL or "Resuming from" not in printed:
        raise RunFailed(f"after SIGKILL: exit code {code}; the run had not resumed")
    seen = this.caspi("watch", RUN, "--once", codes=(ExitCode.NO,))
    if "killed" not in seen:
        raise RunFailed(f"caspi watch does not see that the run was killed: {seen}")
    newest, _ = newest_checkpoint(this.run_dir)
    step = newest.marker.step if newest else 0
    this.note(
        "kill (SIGKILL) in strategy A",
        f"at step {newest_step(this.run_dir)}; the newest checkpoint is of step {step}",
        "caspi watch says killed, exit code 1",
    )


def damage(this: Rehearsal) -> None:
    """One bit of the newest checkpoint's weights is wrong."""
    folder = checkpoint_folders(this.run_dir)[-1]
    flip_a_bit(folder / WEIGHTS)
    code, printed = this.train_until(lambda: True, None)
    line = next((line for line in printed.splitlines() if f"{folder.name} cannot be used" in line), None)
    resumed = next((line for line in printed.splitlines() if "Resuming from" in line), "")
    aside = folder.with_name(folder.name.replace("checkpoint", "torn"))
    if code != 0 or line is None or not aside.is_dir() or folder.name in resumed:
        raise RunFailed(f"with a damaged checkpoint: exit code {code}; {line}; {resumed}")
    before = resumed.split("checkpoint-")[1].split()[0]
    this.note(
        f"one bit of {folder.name} is wrong",
        f"moved to {aside.name}; went on from step {before} to the end",
        "its SHA-256 is not that of COMPLETE.json",
    )


def compare_runs(this: Rehearsal) -> None:
    """Nothing is lost: the disturbed run has the undisturbed one's weights, optimizer state and losses, bit for bit."""
    other = this.folder / UNDISTURBED
    last = checkpoint_folders(other)[-1].name
    names = [WEIGHTS, *(f"{last}/{path.name}" for path in sorted((other / last).glob("*.safetensors")))]
    differing = [name for name in names if sha256_of_file(other / name) != sha256_of_file(this.run_dir / name)]
    losses = [losses_of(folder) for folder in (other, this.run_dir)]
    if differing or losses[0] != losses[1]:
        raise RunFailed(f"the disturbed run is another one: {', '.join(differing) or 'its losses differ'}")
    this.note(
        "the disturbed run against an undisturbed one",
        f"equal: final model, weights and optimizer state of {last}, {len(losses[0])} losses",
        f"sha256 of {WEIGHTS} {sha256_of_file(this.run_dir / WEIGHTS)[:16]}",
    )
    holding = [
        path for path in this.folder.rglob("*") if path.is_file() and UNREACHABLE_KEY.encode() in path.read_bytes()
    ]
    if holding:
        raise RunFailed(f"the W&B key was written to {holding[0]}")
    this.note("the W&B key was in the environment", "in none of the files", "all files of the rehearsal searched")


def after_training(this: Rehearsal) -> None:
    """Comparison, release, and the way back."""
    this.caspi("compare", *FLAGS, codes=(ExitCode.DONE, ExitCode.NO))
    pooled = next(
        row for row in read_object(this.folder / "comparison.json")["rows"] if row["test_set"] == "pooled_wer"
    )
    this.note(
        "Round 2 is compared with Round 1",
        f"WER {100 * pooled['round1_wer']:.1f} to {100 * pooled['round2_wer']:.1f} %: {pooled['verdict']}",
        f"{pooled['num_utterances']} utterances, comparison.json",
    )
    this.caspi("export", "--run-dir", RUN, *FLAGS)
    this.note("Round 2 is exported", "reloaded and proved tensor by tensor", "caspi export, exit code 0")
    this.caspi("rollback", *FLAGS, "--option", "best-checkpoint")
    this.caspi("rollback", *FLAGS, "--option", "round1", "--reason", "rehearsal")
    served = this.caspi("rollback", *FLAGS).splitlines()[0]
    if not served.startswith(f"served now: {(this.folder / 'round1').resolve()}"):
        raise RunFailed(f"after the rollback: {served}")
    archives = list((this.folder / "backups").glob("*.tar.gz"))
    this.note("rollback to Round 1", "Round 1 is served", f"{len(archives)} backups written and read back")
