"""HTML pages: self-contained, no network, open from disk; all text in them is foreign and escaped."""

from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parents[1] / "templates"
TONES = {
    "good": ("PROCEED", "better", "met"),
    "bad": ("STOP", "worse", "missed"),
    "unsure": ("CAUTION", "AUDIT_INVALID", "cannot tell"),
}


def environment() -> jinja2.Environment:
    """Templates escape everything: transcripts are foreign text."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    env.filters["pct"] = lambda fraction: "-" if fraction is None else f"{100 * fraction:.1f}"
    env.filters["signed"] = lambda fraction: f"{100 * fraction:+.1f}"
    env.filters["tone"] = lambda word: next((tone for tone, words in TONES.items() if word in words), "")
    return env


def style() -> Markup:
    return Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
