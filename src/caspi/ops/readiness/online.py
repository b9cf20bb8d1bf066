"""Questions to servers: all at the same time, and none waited for longer than allowed, whatever hangs."""

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime

from caspi.config import Check
from caspi.ops.readiness.accounts import uses_wandb, wandb_key, wandb_user
from caspi.ops.readiness.finding import Finding

Question = tuple[str, Callable[[], str]]
"""Subject, and what finds the answer or raises."""
TOKEN = "Hugging Face token"


class ClockIsOff(Exception):
    """Signed requests will fail."""


def ask_servers(check: Check, models: Sequence[str], datasets: Sequence[str]) -> list[Finding]:
    """Token, access to each model and dataset, W&B key, clock; in this order."""
    from huggingface_hub import HfApi

    api, timeout = HfApi(), check.timeout_seconds
    questions: list[Question] = [(TOKEN, lambda: token_owner(timeout))]
    for name in models:
        questions.append((name, lambda name=name: f"revision {api.model_info(name, timeout=timeout).sha}"))  # type: ignore[misc]
    for name in datasets:
        questions.append((name, lambda name=name: f"revision {api.dataset_info(name, timeout=timeout).sha}"))  # type: ignore[misc]
    if uses_wandb() and wandb_key():
        questions.append(("W&B key", lambda: wandb_user(timeout)))
    questions.append(("Clock", lambda: clock(check)))
    return ask_all(questions, check.deadline_seconds)


def ask_all(questions: Sequence[Question], deadline_seconds: float) -> list[Finding]:
    """A question whose answer does not come in time is unknown; its thread is left behind, for looking up a name cannot
    be interrupted."""
    answers: queue.SimpleQueue[tuple[int, Finding]] = queue.SimpleQueue()

    def put(index: int, question: Question) -> None:
        answers.put((index, ask(*question)))

    for index, question in enumerate(questions):
        threading.Thread(target=put, args=(index, question), daemon=True).start()
    found: dict[int, Finding] = {}
    deadline = time.monotonic() + deadline_seconds
    while len(found) < len(questions):
        try:
            index, finding = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        found[index] = finding
    late = f"no answer within {deadline_seconds:g} s"
    return [
        found.get(index, Finding(subject, "unknown", late, "check the network, then run caspi check again"))
        for index, (subject, _) in enumerate(questions)
    ]


def ask(subject: str, question: Callable[[], str]) -> Finding:
    """Put one question to a server and sort the ways in which it can fail."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Finding(subject, "ok", question())
    except LocalTokenNotFoundError:
        return Finding(subject, "fail", "none", "hf auth login, or export HF_TOKEN")
    except GatedRepoError:
        return Finding(subject, "fail", "gated", f"request access on its page: {subject}")
    except RepositoryNotFoundError:
        return Finding(subject, "fail", "not found or not readable with this token", "check the id and the token")
    except HfHubHTTPError as error:
        return Finding(subject, "fail", f"HTTP {error.response.status_code}", "check the token's permissions")
    except HFValidationError as error:
        return Finding(subject, "fail", str(error), "correct the name in the recipe")
    except PermissionError as error:
        return Finding(subject, "fail", str(error), "wandb login --relogin, or export WANDB_MODE=offline")
    except ClockIsOff as error:
        return Finding(subject, "fail", str(error), "set the clock (NTP)")
    except (HTTPError, OSError) as error:
        return Finding(subject, "unknown", f"could not ask: {error}", "check the network, then run caspi check again")
    except ValueError as error:
        return Finding(subject, "unknown", f"the answer cannot be read: {error}", "is there a proxy in between?")


def token_owner(timeout_seconds: float) -> str:
    """Who the token belongs to; asked directly, since the library's `whoami` knows no time-out."""
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    if get_token() is None:
        raise LocalTokenNotFoundError("no token")
    url = f"{constants.ENDPOINT}/api/whoami-v2"
    response = httpx2.get(url, headers=build_hf_headers(), timeout=timeout_seconds)
    hf_raise_for_status(response)
    return f"belongs to {response.json()['name']}"


def clock(check: Check) -> str:
    """Difference to the hub's clock; signed requests fail when it is large.

    Raises:
        ClockIsOff: by more than allowed.
    """
    import httpx2
    from huggingface_hub import constants

    response = httpx2.head(constants.ENDPOINT, timeout=check.timeout_seconds)
    skew = abs(time.time() - parsedate_to_datetime(response.headers["date"]).timestamp())
    if skew > check.max_clock_skew_seconds:
        raise ClockIsOff(f"off by {skew:.0f} s")
    return f"within {skew:.0f} s of the hub's"


def is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/")) and not os.path.exists(name)  # noqa: PTH110
