"""The CUDA library, compiled without a GPU: its resources, its accesses, what it links to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import cuda_budget
import pytest
import regkern
from conftest import build_library

CPU_LIBRARY = Path(regkern.__file__).parent / "libregkern.so"

# One process builds the library, and reads it.
pytestmark = pytest.mark.xdist_group("cuda")


def _nvcc() -> str | None:
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    candidates += [
        str(Path(home) / "bin" / "nvcc")
        for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"))
        if home
    ]
    return next((path for path in candidates if path and shutil.which(path)), None)


def _cuobjdump() -> str | None:
    """Of the toolkit, or of Triton's wheel, which brings it along."""
    nvcc = _nvcc()
    candidates = [shutil.which("cuobjdump")]
    if nvcc is not None:
        candidates.append(str(Path(nvcc).resolve().parent / "cuobjdump"))
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        candidates.append(str(folder / "cuobjdump"))
    return next((path for path in candidates if path and shutil.which(path)), None)


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} (binutils)")
    return path


def _output(*command: str, stdin: str | None = None, path: str | None = None) -> str:
    env = os.environ if path is None else {**os.environ, "PATH": path}
    run = subprocess.run(command, input=stdin, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """libregkern_cuda.so for sm_90, warnings being errors; in $REGKERN_CUDA_BUILD if set."""
    nvcc = _nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: put it on PATH or set CUDACXX or CUDA_HOME")
    folder = build_library(
        os.environ.get("REGKERN_CUDA_BUILD", "cuda"),
        "-DREGKERN_CPU=OFF",
        "-DREGKERN_CUDA=ON",
        "-DCMAKE_CUDA_ARCHITECTURES=90-real",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
    )
    return folder / "libregkern_cuda.so"


def _dump(library: Path, *what: str) -> str:
    cuobjdump = _cuobjdump()
    if cuobjdump is None:
        pytest.skip("no cuobjdump, in the CUDA toolkit or in Triton's wheel")
    # cuobjdump calls nvdisasm, which lies beside it.
    path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    return _output(cuobjdump, *what, str(library), path=path)


def _demangled(text: str) -> str:
    return _output(_tool("c++filt"), stdin=text)


@pytest.fixture(scope="session")
def usage(cuda_library: Path) -> list[tuple[str, str, str]]:
    """Each kernel: its symbol, its name and its line of the report."""
    text = _dump(cuda_library, "--dump-resource-usage")
    found = re.findall(r"Function (\S+):\n\s*(REG:.*)", text)
    names = _demangled("\n".join(symbol for symbol, _ in found)).splitlines()
    return [(symbol, name, line) for (symbol, line), name in zip(found, names, strict=True)]


@pytest.fixture(scope="session")
def resources(usage: list[tuple[str, str, str]]) -> dict[str, dict[str, int]]:
    return {
        name: {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        for _, name, line in usage
    }


@pytest.fixture(scope="session")
def sass(cuda_library: Path, usage: list[tuple[str, str, str]]) -> dict[str, str]:
    """The machine code of the kernels that are looked at; that of all takes minutes."""
    wanted = re.compile("|".join(cuda_budget.WIDE_ACCESSES))
    symbols = [symbol for symbol, name, _ in usage if wanted.search(name)]
    text = _dump(cuda_library, "--dump-sass", "--function", ",".join(symbols))
    parts = re.split(r"^\s*Function : (.*)$", _demangled(text), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _budget(kernel: str) -> int:
    for pattern, registers in cuda_budget.EXCEPTIONS.items():
        if re.search(pattern, kernel):
            return registers
    return cuda_budget.DEFAULT


def test_every_kernel_was_found(resources: dict[str, dict[str, int]]) -> None:
    names = "\n".join(resources)
    for kernel in ("planes_kernel", "mask_apply_kernel", "mix_kernel", "random_erasing_kernel"):
        assert kernel in names
    for pattern in cuda_budget.EXCEPTIONS:
        assert re.search(pattern, names), f"the budget names no kernel: {pattern}"


def test_no_stack_and_no_spills(resources: dict[str, dict[str, int]]) -> None:
    """Registers that do not suffice are spilled to the stack, which lies in local memory."""
    bad = {name: use for name, use in resources.items() if use["STACK"] or use["LOCAL"]}
    assert not bad


def test_registers_stay_in_the_budget(resources: dict[str, dict[str, int]]) -> None:
    over = {
        name: (use["REG"], _budget(name))
        for name, use in resources.items()
        if use["REG"] > _budget(name)
    }
    assert not over


@pytest.mark.parametrize("pattern", cuda_budget.WIDE_ACCESSES)
def test_tensors_move_in_16_byte_accesses(sass: dict[str, str], pattern: str) -> None:
    code = [text for name, text in sass.items() if re.search(pattern, name)]
    assert len(code) == 1, pattern
    for access in ("LDG", "STG"):
        wide = re.findall(rf"\b{access}\.E(?:\.\w+)*\.128\b", code[0])
        assert len(wide) >= cuda_budget.WIDE_ACCESSES[pattern], access


def _foreign_symbols(library: Path) -> list[str]:
    """What a library needs beside torch's stable C interface, libc, libstdc++ and libgcc."""
    allowed = re.compile(
        r"(aoti_)?torch_\w+$"
        r"|\S+@@?(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+$"
        # What gcc's start files look up, if it is there.
        r"|(_ITM_(de)?registerTMCloneTable|__gmon_start__|__cxa_finalize)$"
    )
    text = _output(_tool("nm"), "-D", "--undefined-only", str(library))
    names = [line.split()[-1] for line in text.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    return [name for name in names if not allowed.match(name)]


def test_the_cuda_library_needs_the_stable_interface_alone(cuda_library: Path) -> None:
    assert _foreign_symbols(cuda_library) == []


def test_the_cpu_library_needs_the_stable_interface_alone() -> None:
    assert _foreign_symbols(CPU_LIBRARY) == []


def test_the_cuda_runtime_is_linked_statically(cuda_library: Path) -> None:
    dynamic = _output(_tool("readelf"), "-d", str(cuda_library))
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert not [name for name in needed if "cuda" in name and "torch" not in name]


@pytest.fixture(scope="session")
def cpu_code() -> dict[str, str]:
    """The machine code of the functions of the CPU library."""
    text = _output(_tool("objdump"), "-d", "-C", "--no-show-raw-insn", str(CPU_LIBRARY))
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", text, flags=re.M)
    code: dict[str, str] = {}
    for name, body in zip(functions[1::2], functions[2::2], strict=True):
        code[name] = code.get(name, "") + body
    return code


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64's registers")
def test_no_mmx_register_is_used(cpu_code: dict[str, str]) -> None:
    """An MMX instruction without `emms` leaves a full x87 stack: long doubles of others turn NaN.

    gcc 12 made such code of two 64-bit integers in one SSE2 vector.
    """
    assert any("%xmm0" in body for body in cpu_code.values())
    assert not [name for name, body in cpu_code.items() if re.search(r"%mm[0-7]\b", body)]


def test_no_shared_function_was_compiled_for_one_instruction_set(cpu_code: dict[str, str]) -> None:
    """The linker keeps one copy of an inline function for everybody, whoever compiled it.

    So nothing with external linkage may come from the objects of an instruction set but what is
    named after it: no template of the standard library, no inline function of a header.
    """
    lines = _output(_tool("nm"), "--defined-only", "-C", str(CPU_LIBRARY)).splitlines()
    fields = [line.split(maxsplit=2) for line in lines]
    assert not [name for _, kind, name in fields if kind in "WwVvu" and "isa_" in name]
    if os.uname().machine != "x86_64":
        return
    # VEX encoding starts with AVX; verr and verw are the only other instructions in v.
    avx = {
        name for name, body in cpu_code.items() if re.search(r"%[yz]mm|\tv(?!err|erw)\w+ ", body)
    }
    assert any("isa_avx512::" in name for name in avx)
    own = ("isa_avx2::", "isa_avx512::", "(anonymous namespace)::")
    assert not [name for name in avx if not any(part in name for part in own)]
