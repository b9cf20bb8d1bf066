"""Checkpoints kept in object storage as well: a lost machine costs the steps since the last one."""
