"""Hebrew speech made by espeak-ng, with known words and word times."""
