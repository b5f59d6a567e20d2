"""Builds the libraries with CMake and Ninja against the torch that the environment holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
NO_TORCH = (
    "regkern builds against the torch that is installed (2.11 or newer) and found none: "
    "run `pip install torch` for your platform first, then install regkern again."
)


def torch_dir() -> Path:
    """The folder of the environment's torch.

    pip runs an isolated build in an interpreter whose search path leaves the environment's own
    packages out, so a fresh one is asked, without the variables that set the isolation up.
    """
    code = (
        "import importlib.util as u; s = u.find_spec('torch');"
        "print(s.submodule_search_locations[0] if s else '')"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for env in (os.environ, clean):
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True
        ).stdout.strip()
        if out and (Path(out) / "lib" / "libtorch_cpu.so").exists():
            return Path(out)
    raise SystemExit(NO_TORCH)


class CMakeBuild(build_ext):
    """One extension, `regkern._native`, whose build also makes the libraries beside it."""

    def run(self) -> None:
        torch = torch_dir()
        version = (torch / "version.py").read_text().split("__version__ = '")[1].split("'")[0]
        if tuple(int(n) for n in version.split("+")[0].split(".")[:2]) < (2, 11):
            raise SystemExit(f"regkern needs torch 2.11 or newer, found {version} in {torch}.")
        target = Path(self.get_ext_fullpath("regkern._native")).resolve().parent
        # One folder per torch: the cached paths of another one would be wrong.
        tag = f"{version}-py{sys.version_info[0]}{sys.version_info[1]}"
        build = Path(os.environ.get("REGKERN_BUILD_DIR", ROOT / "build" / tag)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        import pybind11

        configure = [
            self.tool("cmake"),
            "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={self.tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DREGKERN_TORCH_DIR={torch}",
            f"-DREGKERN_VERSION={self.distribution.get_version()}",
            f"-DREGKERN_CUDA={os.environ.get('REGKERN_CUDA', 'AUTO')}",
            f"-DREGKERN_WERROR={os.environ.get('REGKERN_WERROR', 'OFF')}",
            f"-DCMAKE_INSTALL_PREFIX={target}",
        ]  # fmt: skip
        if "REGKERN_CUDA_ARCHITECTURES" in os.environ:
            configure.append(
                f"-DCMAKE_CUDA_ARCHITECTURES={os.environ['REGKERN_CUDA_ARCHITECTURES']}"
            )
        subprocess.run(configure, check=True)
        subprocess.run([self.tool("cmake"), "--build", str(build)], check=True)
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run([self.tool("cmake"), "--install", str(build)], check=True)

    @staticmethod
    def tool(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            raise SystemExit(f"regkern's build needs {name}: run `pip install {name}`.")
        return path

    def get_outputs(self) -> list[str]:
        target = Path(self.get_ext_fullpath("regkern._native")).resolve().parent
        return [str(p) for p in target.glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        # Editable installs take the libraries from the source tree, where --install put them.
        return {}


setup(
    ext_modules=[Extension("regkern._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
