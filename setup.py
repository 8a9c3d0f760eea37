"""What pyproject.toml cannot say: each kernel file is compiled once per dtype and instruction set."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

MACHINE = platform.machine().lower()
IS_X86 = MACHINE in ("x86_64", "amd64")
IS_ARM = MACHINE in ("aarch64", "arm64")

# name: (bytes in a vector, compiler options); csrc/dispatch.c asks the CPU for the same features.
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
# Where an x86 CPU has no fused multiply-add the time goes into the C library's. -O3 would be a tenth of the wheel and
# take 1.0 to 1.5 times as long there, -O2 0.96 to 1.25 (measured with
# GLIBC_TUNABLES=glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX).
INSTRUCTION_SETS = {"scalar": (16, ["-Os"] if IS_X86 else [])}
if IS_X86:
    INSTRUCTION_SETS |= {"avx2": (32, AVX2), "avx512": (64, AVX512)}
if IS_ARM:
    INSTRUCTION_SETS |= {"neon": (16, [])}

# Contraction would let one machine fuse what another rounds twice.
OPTIONS = ["-std=c11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
OPTIONS += ["-Wall", "-Wextra", "-Wno-psabi", *os.environ.get("FASTSOFTMAX_CFLAGS", "").split()]
CORE_SOURCES = ["csrc/run.c", "csrc/layout.c", "csrc/labels.c", "csrc/parallel.c", "csrc/dispatch.c"]
KERNEL_SOURCES = ["csrc/row_kernels.c", *(str(path) for path in Path("csrc").glob("*.h"))]


class BuildKernels(build_ext):
    """Compile csrc/row_kernels.c for every dtype and instruction set, with OpenMP where there is one."""

    def build_extension(self, ext):
        if self.compiler.compiler_type == "msvc":
            # setuptools looks for cl.exe alone, which has no vector types; clang-cl takes the same options.
            self.compiler.initialize()
            self.compiler.cc = "clang-cl"
        self.check_compiler()
        openmp = self.openmp_options()
        if not openmp:
            print("fastsoftmax: no OpenMP here, this build runs on one thread", file=sys.stderr)
        ext.extra_compile_args = self.spelled(OPTIONS) + openmp
        ext.extra_link_args = openmp + self.cpu_features_library()
        for name, (vector_bytes, options) in INSTRUCTION_SETS.items():
            for bits in (32, 64):
                table = f"kernels_f{bits}_{name}"
                macros = [("REAL_BITS", bits), ("VECTOR_BYTES", vector_bytes), ("KERNELS", table)]
                ext.extra_objects += self.compiler.compile(
                    ["csrc/row_kernels.c"],
                    output_dir=str(Path(self.build_temp) / table),
                    macros=macros,
                    extra_postargs=self.spelled(OPTIONS + options),
                    depends=KERNEL_SOURCES,
                )
        super().build_extension(ext)

    def spelled(self, options):
        """Clang's options as this compiler takes them."""
        return [f"/clang:{option}" for option in options] if self.compiler.compiler_type == "msvc" else options

    def cpu_features_library(self):
        """Clang's own library, which tells the CPU's features and which link.exe does not know of."""
        if self.compiler.compiler_type != "msvc":
            return []
        question = ["clang-cl", *self.spelled(["--rtlib=compiler-rt", "-print-libgcc-file-name"])]
        return [subprocess.check_output(question, text=True).strip()]

    def try_to_link(self, source, options):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.c"
            path.write_text(source)
            objects = self.compiler.compile([str(path)], output_dir=folder, extra_postargs=options)
            self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=options)

    def check_compiler(self):
        try:
            self.try_to_link("int main(void) { return 0; }", [])
        except (CompileError, LinkError, OSError) as error:
            raise SystemExit(
                "fastsoftmax needs a C compiler to build, GCC 12 or Clang 14 or newer "
                f"(Debian and Ubuntu: apt-get install gcc libc6-dev; Windows: clang-cl and Visual Studio): {error}"
            ) from error

    def openmp_options(self):
        source = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }"
        # Neither Apple's clang nor clang-cl comes with GNU's runtime, and wheels are not to carry another one.
        if sys.platform in ("darwin", "win32") or os.environ.get("FASTSOFTMAX_NO_OPENMP"):
            return []
        try:
            self.try_to_link(source, ["-fopenmp"])
        except (CompileError, LinkError):
            return []
        return ["-fopenmp"]


setup(
    ext_modules=cythonize(
        [
            Extension(
                "fastsoftmax._core",
                ["src/fastsoftmax/_core.pyx", *CORE_SOURCES],
                include_dirs=["csrc", numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
                depends=KERNEL_SOURCES,
                libraries=[] if os.name == "nt" else ["m"],  # fma, where the CPU has none
            )
        ],
        include_path=["src"],
    ),
    cmdclass={"build_ext": BuildKernels},
)
