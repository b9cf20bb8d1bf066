"""Data that ships: the tiny base checkpoint that stands for Round 1 in the demo."""

from pathlib import Path

TINY_BASE = Path(__file__).parent / "tiny-base"
