"""A run directory as status, alerts, page and bug report."""
