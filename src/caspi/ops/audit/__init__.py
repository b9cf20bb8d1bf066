"""The audit's report and decision."""
