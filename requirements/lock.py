"""Pin every dependency by version and hash: `make lock`.

`pins.txt` holds what every machine installs. torch comes in two builds: `cuda.txt` (with the libraries that only the
CUDA build needs, several GB) and `cpu.txt` for machines that hold a CPU wheel in a local folder. All are resolved once
for Python 3.11 to 3.13 and name no registry, so they work with any mirror.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WITH_TORCH = ("cuda-", "nvidia-", "torch==", "triton")
HEADER = "# Written by `make lock` from pyproject.toml; do not edit.\n"


def main(uv: str, wheel_folders: list[str]) -> None:
    command = [uv, "pip", "compile", "--universal", "--python-version=3.11", "--generate-hashes", "--no-config"]
    command += ["--no-header", "--no-annotate", "--extra=demo", "--extra=ray", "--group=dev", "--quiet", "--upgrade"]
    result = subprocess.run([*command, "pyproject.toml"], cwd=HERE.parent, check=True, text=True, capture_output=True)
    pins: list[str] = []
    cuda: list[str] = []
    for block in result.stdout.strip().replace("\\\n", "\0").splitlines():
        pin = block.replace("\0", "\\\n")
        (cuda if pin.startswith(WITH_TORCH) else pins).append(pin)
    write("pins.txt", pins)
    write("cuda.txt", cuda)
    wheels = [path for folder in wheel_folders for path in sorted(Path(folder).glob("torch-*+cpu-*.whl"))]
    if wheels:
        write("cpu.txt", cpu_build(wheels))


def cpu_build(wheels: list[Path]) -> list[str]:
    """One pin with the hash of every local CPU wheel; no index lists these beside the CUDA build."""
    version = wheels[0].name.split("-")[1]
    return [" \\\n    ".join([f"torch=={version}", *(f"--hash=sha256:{sha256(wheel)}" for wheel in wheels)])]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(name: str, pins: list[str]) -> None:
    (HERE / name).write_text(HEADER + "\n".join(pins) + "\n")
    print(f"requirements/{name}: {len(pins)} packages")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
