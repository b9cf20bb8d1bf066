"""The shape of the system: steps call backwards only, drawers never import steps, light modules stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import caspi

PACKAGE = Path(caspi.__file__).parent
FLOW = [
    "env",
    "check",
    "plan",
    "prepare",
    "audit",
    "gate",
    "clean",
    "launch",
    "train",
    "watch",
    "evaluate",
    "compare",
    "export",
    "rollback",
    "report",
    "rehearsal",
    "demo",
]
FOUNDATION = {"config", "records", "files"}
DRAWERS = {"speech": {"speech"}, "model": {"model", "speech"}, "ops": {"ops"}}
WITHOUT_TORCH = ["cli", "config", "files", "records", "gate", "compare", "env", "plan", "rollback", "watch", "launch"]


def imports_of(path: Path) -> set[str]:
    """Top-level caspi modules or drawers that a file imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"caspi.{alias.name}" for alias in node.names] if node.module == "caspi" else [node.module]
        found |= {name.split(".")[1] for name in names if name.startswith("caspi.")}
    return found


@pytest.mark.parametrize("drawer", DRAWERS)
def test_drawers_import_no_step_and_no_drawer_they_must_not_know(drawer: str) -> None:
    for path in (PACKAGE / drawer).rglob("*.py"):
        assert imports_of(path) <= DRAWERS[drawer] | FOUNDATION, path


@pytest.mark.parametrize("step", FLOW)
def test_steps_import_only_earlier_steps(step: str) -> None:
    path = PACKAGE / f"{step}.py"
    steps = imports_of(path) & set(FLOW)
    assert steps <= set(FLOW[: FLOW.index(step)]), f"{step} imports {steps}"


def test_every_step_of_the_command_line_is_in_the_flow() -> None:
    from caspi.cli import STEPS

    assert set(STEPS) <= set(FLOW)


def test_light_modules_do_not_load_torch() -> None:
    code = "import sys\n" + "".join(f"import caspi.{name}\n" for name in WITHOUT_TORCH)
    code += "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_source_file_is_longer_than_320_lines() -> None:
    long = {str(path): n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 320}
    assert not long
