"""Randomness that depends on what it is for, not on what was drawn before."""

import hashlib

import numpy as np


def hash_key(seed: int, purpose: str, item: str) -> str:
    """A hexadecimal key, the same on every machine; sorting by it is a shuffle that adding items does not disturb."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{item}".encode()).hexdigest()


def seeded_generator(seed: int, purpose: str, item: str = "") -> np.random.Generator:
    return np.random.default_rng(int(hash_key(seed, purpose, item)[:16], 16))
