"""Ask the deployment guide's set-up questions and write the answers as shell exports.

The answers go to a file that `scripts/setup_wandb.sh` sources. Tokens are never asked for, printed or written: W&B and
Hugging Face keep theirs (`wandb login`, `hf auth login`). Answers may come from a pipe, one line each.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable

from caspi.config import Env, Recipe
from caspi.ops.readiness.accounts import is_logged_in
from caspi.ops.readiness.old_variables import translate
from caspi.records import ExitCode, write_atomically

OWNER_ONLY = 0o600
"""The file is sourced: nobody else may write to it, and people do add tokens to such files."""
KEPT = ("HF_HOME", "HF_XET_HIGH_PERFORMANCE", "HF_HUB_DOWNLOAD_TIMEOUT")
"""Written again when they are set, under the names that the libraries read today."""
YES = {"y": True, "yes": True, "n": False, "no": False}
PLAIN_NAME = re.compile(r"[\w.\- ]{1,128}")


def run(recipe: Recipe) -> int:
    settings = ask(recipe.env)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    text = "\n".join(["# Written by `caspi env`; holds no secrets.", *exports, ""])
    write_atomically(recipe.env.output, text, mode=OWNER_ONLY)
    print(f"Wrote {recipe.env.output}:")
    print("\n".join(f"  {name}={value}" for name, value in settings.items()))
    return ExitCode.DONE


def ask(env: Env) -> dict[str, str]:
    """The variables of the guide's Appendix B, from what is set already and from the answers."""
    settings = {
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", env.pytorch_cuda_alloc_conf),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", env.cuda_visible_devices),
    }
    environment = dict(os.environ)
    translate(environment)
    settings |= {name: environment[name] for name in KEPT if environment.get(name)}
    if not question("Use Weights & Biases? (y/n)", "y", yes_or_no):
        return settings | {"WANDB_DISABLED": "true", "WANDB_MODE": "disabled"}
    project = question("W&B project", os.environ.get("WANDB_PROJECT", env.wandb_project), plain_name)
    run_name = question("Run name", os.environ.get("WANDB_RUN_NAME", env.wandb_run_name), plain_name)
    phase0 = question("Log the Phase 0 audit too? (y/n)", "y", yes_or_no)
    online = question("Online or offline?", os.environ.get("WANDB_MODE", "online"), online_or_offline) == "online"
    if online and not is_logged_in():
        print("Not logged in to W&B. Run `wandb login` (or export WANDB_API_KEY) before training.", file=sys.stderr)
    return settings | {
        "WANDB_PROJECT": str(project),
        "WANDB_RUN_NAME": str(run_name),
        "WANDB_PHASE0_LOGGING": str(bool(phase0)).lower(),
        "WANDB_MODE": "online" if online else "offline",
    }


def question(text: str, default: str, understand: Callable[[str], str | bool]) -> str | bool:
    """Ask until the answer is understood; an empty answer or the end of the input takes the default.

    Raises:
        ValueError: the answers come from a pipe and one cannot be understood.
    """
    while True:
        print(f"{text} [{default}]: ", end="", flush=True)
        answer = sys.stdin.readline().strip() or default
        if not sys.stdin.isatty():
            print(answer)
        try:
            return understand(answer)
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            print(error)


def yes_or_no(answer: str) -> bool:
    if answer.lower() not in YES:
        raise ValueError(f"{answer!r} is neither y nor n")
    return YES[answer.lower()]


def online_or_offline(answer: str) -> str:
    if answer.lower() not in ("online", "offline"):
        raise ValueError(f"{answer!r} is neither online nor offline")
    return answer.lower()


def plain_name(answer: str) -> str:
    if not PLAIN_NAME.fullmatch(answer):
        raise ValueError(f"{answer!r} is not a name: expected letters, digits, blank, '.', '_' or '-'")
    return answer
