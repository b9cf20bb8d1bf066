"""`caspi STEP [--recipe FILE.toml] [flags of that step]`: the table of steps.

A step is a module with `run(recipe) -> int`; it is imported only when it is asked for, so that `caspi --help` answers
at once. The running step's section of the configuration becomes its flags, without prefix.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

import tyro

from caspi.config import Recipe, Section, load_recipe
from caspi.records import AnswerIsNo, ExitCode, RunFailed

STEPS = {
    "demo": "the whole flow on synthetic Hebrew speech: no network, no GPU",
    "env": "ask for the W&B settings and write them as shell exports",
    "check": "is this machine ready to train?",
    "plan": "parameters, memory, hours and dollars before renting",
    "prepare": "corpora to one manifest of utterances",
    "audit": "Phase 0: does the transcript match the audio?",
    "gate": "show the Phase 0 decision, record who signed it off",
    "clean": "after the audit: keep, cut, review or drop every utterance",
    "launch": "a task of cloud/ on rented machines: price and command, or run it",
    "train": "gradual unfreezing, stage by stage; resumes by itself",
    "watch": "how a training run is doing: live, as a page, as a bug report",
    "evaluate": "one model over the test sets",
    "compare": "Round 1 against Round 2, with intervals and success criteria",
    "export": "a checkpoint as a folder to serve and publish, with proof",
    "rollback": "back up, go back to a model that works, record what is served",
    "report": "write a page again: audit.html, or the demo's index.html",
}
"""In the order of the flow."""


READER_IS_GONE = 128 + signal.SIGPIPE
"""Exit code when the pipe is closed, for example by `head`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one step and return its exit code (see `records.ExitCode`)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return ExitCode.DONE if arguments else ExitCode.BAD_REQUEST
    step, *flags = arguments
    if step not in STEPS:
        return refuse(f"caspi has no step {step!r}; steps: {', '.join(STEPS)}")
    try:
        recipe = parse(step, flags)
        exit_code = int(importlib.import_module(f"caspi.{step}").run(recipe))
        sys.stdout.flush()  # here, where a reader that is gone is no error
        return exit_code
    except ValueError as error:
        return refuse(str(error))
    except AnswerIsNo as error:
        print(f"caspi {step}: {error}", file=sys.stderr)
        return ExitCode.NO
    except RunFailed as error:
        print(f"caspi {step} failed: {error}", file=sys.stderr)
        return ExitCode.NOT_MEASURED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return READER_IS_GONE
    except KeyboardInterrupt:
        print(f"caspi {step}: interrupted", file=sys.stderr)
        return 130


def parse(step: str, flags: list[str]) -> Recipe:
    """Defaults, then the recipe, then the flags.

    Raises:
        ValueError: the recipe is not valid.
        SystemExit: tyro printed help (0) or refused a flag (2).
    """
    path, flags = take_recipe(flags)
    recipe = load_recipe(path)
    section: Section = getattr(recipe, step)
    section = tyro.cli(type(section), default=section, args=flags, prog=f"caspi {step}", description=STEPS[step])
    return recipe.model_copy(update={step: section})


def take_recipe(flags: list[str]) -> tuple[Path | None, list[str]]:
    """Split `--recipe FILE` from the other flags; the last one counts."""
    path = None
    rest = []
    remaining = iter(flags)
    for flag in remaining:
        if flag == "--recipe":
            value = next(remaining, None)
            if value is None:
                raise ValueError("--recipe needs a file")
            path = Path(value)
        elif flag.startswith("--recipe="):
            path = Path(flag.removeprefix("--recipe="))
        else:
            rest.append(flag)
    return path, rest


def refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return ExitCode.BAD_REQUEST


def usage() -> str:
    lines = ["usage: caspi STEP [--recipe FILE.toml] [flags]", "", "steps, in order:"]
    lines += [f"  {step:10} {text}" for step, text in STEPS.items()]
    return "\n".join([*lines, "", "caspi STEP --help lists the flags of a step."])
