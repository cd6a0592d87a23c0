"""Builds the stand-in libraries from C, and sets the environment to run on them.

Each function that a real library exports and the stand-in lacks becomes a stub that fails and
prints its name, so no unknown call succeeds silently.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).with_name("c")
LIBRARIES = {
    "libcudart.so.13": "*.c",
    "libcuda.so.1": "driver/*.c",
    "libcublas.so.13": "cublas/*.c",
    "libcublasLt.so.13": "cublaslt/*.c",
}
EXPORTS = {
    "libcudart.so.13": r"(?:__)?cuda\w+",
    "libcublas.so.13": r"cublas(?!Lt)\w+",
    "libcublasLt.so.13": r"cublasLt\w+",
}


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def _cuda() -> Path:
    torch = _package("torch")
    assert torch is not None
    return torch.parent / "nvidia/cu13"


def _triton() -> Path:
    triton = _package("triton")
    assert triton is not None
    return triton


def reason_to_skip() -> str:
    """The reason why the stand-in cannot be built here, or an empty string."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "the stand-in for CUDA is built on Linux x86-64"
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        return f"building the stand-in for CUDA needs {' and '.join(missing)}"
    torch = _package("torch")
    if torch is None or not (torch / "lib/libtorch_cuda.so").exists():
        return "torch has no CUDA build here"
    if not (_cuda() / "include/cuda_runtime_api.h").exists():
        return "the headers of CUDA 13 are not installed beside torch"
    if _package("triton") is None:
        return "triton is not installed"
    return ""


def _headers() -> list[str]:
    """Compiler options for CUDA's headers. crt/, which torch's wheels lack, is from Triton."""
    folders = [_cuda() / "include", _triton() / "backends/nvidia/include"]
    return [f"-I{folder}" for folder in folders]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def _exported(library: Path, pattern: str) -> list[str]:
    """The functions that a real library exports under names like ``pattern``."""
    lines = _run("nm", "-D", "--defined-only", str(library)).splitlines()
    names = {line.split()[-1].split("@")[0] for line in lines if re.search(r" [TWi] ", line)}
    return sorted(name for name in names if re.fullmatch(pattern, name))


def _declared() -> list[str]:
    """The functions that the driver's header declares: without a GPU there is no library."""
    text = _run("gcc", "-E", "-P", str(_cuda() / "include/cuda.h"))
    return sorted(set(re.findall(r"\b(cu[A-Z]\w+)\s*\(", text)))


def _stubs(names: list[str]) -> str:
    """C source of weak functions. A library's own definition of the same name overrides them."""
    body = "\n".join(f"STUB({name})" for name in names)
    return (
        "int rehearsal_unknown(const char *name);\n"
        "#define STUB(name) __attribute__((weak)) int name(void) "
        "{ return rehearsal_unknown(#name); }\n" + body + "\n"
    )


def _names(library: str) -> list[str]:
    if library == "libcuda.so.1":
        return _declared()
    return _exported(_cuda() / "lib" / library, EXPORTS[library])


def _link(library: str, folder: Path) -> None:
    stubs = folder / f"stubs_of_{library}.c"
    stubs.write_text(_stubs(_names(library)))
    versions = folder / f"{library}.version"
    versions.write_text(f"{library} {{ global: cu*; __cuda*; rehearsal_*; local: *; }};\n")
    runtime = [] if library == "libcudart.so.13" else [str(folder / "libcudart.so.13")]
    _run(
        *("gcc", "-std=gnu11", "-O2", "-g", "-shared", "-fPIC", "-D_GNU_SOURCE"),
        *("-Wall", "-Wextra", "-Werror", *_headers(), f"-I{SOURCES}"),
        *map(str, sorted(SOURCES.glob(LIBRARIES[library]))),
        *(str(stubs), *runtime, "-o", str(folder / library)),
        *(f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}"),
        *("-Wl,-rpath,$ORIGIN", "-ldl", "-lpthread"),
    )


def _ptxas(name: str, folder: Path) -> Path:
    real = _triton() / "backends/nvidia/bin" / name
    wrapper = folder / name
    text = (SOURCES / "ptxas.sh").read_text().replace("REAL_PTXAS", str(real))
    wrapper.write_text(text)
    wrapper.chmod(0o755)
    return wrapper


def build(folder: Path) -> Path:
    """Builds the four libraries and the wrappers of ptxas in ``folder``, and returns it.

    Raises ``RuntimeError`` with the compiler's messages if it fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        _link(library, folder)
    (folder / "libcuda.so").unlink(missing_ok=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    for name in ("ptxas", "ptxas-blackwell"):
        _ptxas(name, folder)
    return folder


def environment(folder: Path, device: str = "h100") -> dict[str, str]:
    """The environment variables that make a process use the stand-in built in ``folder``."""
    searched = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return {
        "LD_LIBRARY_PATH": ":".join(searched),
        "LD_PRELOAD": " ".join(str(folder / name) for name in LIBRARIES),
        "CUDA_VISIBLE_DEVICES": "0",
        "REHEARSAL_DEVICE": device,
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_PTXAS_PATH": str(folder / "ptxas"),
        "TRITON_PTXAS_BLACKWELL_PATH": str(folder / "ptxas-blackwell"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
