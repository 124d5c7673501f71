"""C++ kernels for generation on a CPU: a token of each text through all blocks, and products of few
rows with a large matrix, for which BLAS reaches half of the memory bandwidth or less. The first
build() compiles them, which takes half a minute.

    kernels = build()
    y = kernels.linear(x, weight, bias)              # x (N, K), weight (O, K) → (N, O), float32
    packed = kernels.pack_int8(q)                    # q (O, K) int8; weight = q * scale, (O,)
    y = kernels.linear_int8(x, packed, scale, bias)
    packed, scales = kernels.pack_int4(q, scales)    # q of -8 to 7; scales (O, K/32)
    y = kernels.linear_int4(x, packed, scales, bias, O)
    kernels.Decoder(…)                               # see decoder.py

Each number of a result is summed in the same order for every N: a row does not depend on the other
rows, bit for bit.
"""

import functools
import hashlib
import os
import platform
import shlex
import sys
import sysconfig
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.common.locks import locked

SOURCE = Path(__file__).with_name("cpp") / "kernels.cpp"
BUILD_SECONDS = 300.0  # a build takes half a minute; another process may be building
FEW = 16  # rows up to which linear() is faster than PyTorch's own; linear_int8() always is


def built_before():
    """The compiled module if build() has only to load it, else None. It compiles nothing."""
    try:
        from torch.utils import cpp_extension

        module = Path(cpp_extension._get_build_directory(_name(), verbose=False)) / f"{_name()}.so"
        newest = max(path.stat().st_mtime for path in _sources())
        return build() if module.stat().st_mtime >= newest else None
    except (OSError, UserError):
        return None


@functools.cache
def build(march="native"):
    """The compiled module, from PyTorch's cache of extensions if it has been built before.
    march: the processor, as the compiler's option names it. UserError if it cannot be built."""
    flags = _flags(march)
    scripts = sysconfig.get_path("scripts")  # where pip puts ninja; perhaps not in PATH
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), scripts])
    try:
        from torch.utils import cpp_extension

        # PyTorch puts it into the linker's command without quotes; a folder may have blanks.
        name, folder = _name(march), cpp_extension.TORCH_LIB_PATH
        cpp_extension.TORCH_LIB_PATH = shlex.quote(folder)
        built = Path(cpp_extension._get_build_directory(name, verbose=False))
        try:
            with locked(built / ".lock", built, wait=BUILD_SECONDS):
                # PyTorch's own lock is a file that a killed build leaves behind, and then every
                # later one waits forever. Under our lock no other build is running.
                (built / "lock").unlink(missing_ok=True)
                return cpp_extension.load(name, [str(SOURCE)], extra_cflags=flags)
        finally:
            cpp_extension.TORCH_LIB_PATH = folder
    except Exception as error:  # of PyTorch, of the compiler, or a folder is not writable
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the C++ kernels cannot be built ({reason}): they need a C++ compiler such as g++, "
            "and ninja (pip install ninja)"
        ) from None


def _flags(march="native"):
    """The compiler's flags on this machine. UserError where the kernels cannot be built."""
    intel = platform.machine() in ("x86_64", "AMD64")
    if sys.platform.startswith("linux"):
        # With -fopenmp they share PyTorch's threads (its libgomp is loaded already).
        wide = ["-mprefer-vector-width=512"] if intel and march == "native" else []
        return ["-O3", f"-march={march}", "-fopenmp", *wide]
    if sys.platform == "darwin":  # clang without OpenMP: one thread. Not run so far
        return ["-O3", f"-march={march}" if intel else f"-mcpu={march}", "-fopenmp-simd"]
    raise UserError("the C++ kernels are built on Linux and macOS only")


def _sources():
    """The source and the headers beside it."""
    return [Path(SOURCE), *sorted(Path(SOURCE).parent.glob("*.h"))]


def _name(march="native"):
    """The module's name, the key of PyTorch's cache: different for each source, flags, PyTorch and
    kind of processor. Machines may share a home folder, and -march=native code runs only on the
    same kind."""
    from torch import __version__

    facts = [path.read_text(encoding="utf-8") for path in _sources()]
    facts += [__version__, platform.machine(), *_flags(march)]
    if sys.platform.startswith("linux"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            facts += sorted({line for line in file if line.startswith(("flags", "Features"))})
    return f"minigpt_kernels_{hashlib.sha256(''.join(facts).encode()).hexdigest()[:8]}"
