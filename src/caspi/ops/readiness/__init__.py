"""What `caspi check` asks of a machine, and of the servers that a run will need."""
