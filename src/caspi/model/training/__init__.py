"""The training engine: batches, layer groups, stages, resume."""
