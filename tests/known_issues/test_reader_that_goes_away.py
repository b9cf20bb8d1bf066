"""`caspi plan --json | head -1` ended in a traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["plan", "--json"], ["plan"], ["gate", "--help"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "caspi", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
