"""Reading, converting, averaging and proving checkpoints."""
