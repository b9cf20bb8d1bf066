"""The accounts that a run uses; keys are looked up, never shown."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from caspi.ops.readiness.finding import Finding

WANDB_URL = "https://api.wandb.ai"


def wandb_url() -> str:
    return os.environ.get("WANDB_BASE_URL", WANDB_URL).rstrip("/")


def wandb_key() -> str | None:
    """From the variable, else from the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        found = netrc.netrc(path).authenticators(urlsplit(wandb_url()).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None


def is_logged_in() -> bool:
    return wandb_key() is not None


def uses_wandb() -> bool:
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1")
    return not disabled and os.environ.get("WANDB_MODE", "online") == "online"


def wandb_login() -> Finding:
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return Finding("W&B", "ok", "disabled; TensorBoard only")
    if not uses_wandb():
        return Finding("W&B", "ok", f"{os.environ['WANDB_MODE']}; `wandb sync` later")
    if is_logged_in():
        return Finding("W&B", "ok", "a key is stored")
    return Finding("W&B", "warn", "not logged in", "wandb login, or export WANDB_MODE=offline")


def wandb_user(timeout_seconds: float) -> str:
    """Whose key it is, as the server says.

    Raises:
        PermissionError: the server does not know the key.
    """
    import httpx2

    query = {"query": "query { viewer { username } }"}
    key = wandb_key() or ""
    response = httpx2.post(f"{wandb_url()}/graphql", json=query, auth=("api", key), timeout=timeout_seconds)
    viewer = response.json().get("data", {}).get("viewer") if response.status_code == 200 else None
    if not viewer:
        raise PermissionError("the key is not accepted")
    return f"the key belongs to {viewer['username']}"
