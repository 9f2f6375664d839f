"""Libraries to link in place of CUDA's: lazy_stubs.py CUDARC/src FOLDER

dfdx's cudarc (0.9) links libcuda, libcublas, libcublasLt and libnvrtc, so a program would
neither link nor start where they are missing. This writes a static library for each: of every
function a trampoline of a few instructions, which opens the real library at the first call and
jumps to it from then on. Where there is none, every call returns an error code.

x86-64 with gcc only: the trampolines are assembly, since they do not know the arguments that
they pass on.
"""

import re
import subprocess
import sys
from pathlib import Path

# Of each library: module of cudarc, names to open, code that is returned where it is missing
# (CUDA_ERROR_NO_DEVICE, NVRTC_ERROR_INVALID_OPTION, CUBLAS_STATUS_NOT_INITIALIZED).
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"], 100),
    "nvrtc": ("nvrtc", ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], 5),
    "cublas": ("cublas", ["libcublas.so.13", "libcublas.so.12", "libcublas.so"], 1),
    "cublasLt": ("cublaslt", ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], 1),
}

SOURCE = r"""
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {@NAMES@};
static const char *const libraries[] = {@LIBRARIES@, 0};
__attribute__((visibility("hidden"))) void *lopt_@ID@_table[@COUNT@];

static int missing(void) { return @CODE@; }

/* cudarc unwraps the text of an error: it has to come without a driver, too. */
static int describe(int code, const char **text) {
    (void)code;
    *text = "no usable NVIDIA driver was found";
    return 0;
}

__attribute__((visibility("hidden"), used)) void *lopt_@ID@_resolve(size_t i) {
    static void *library;
    static int tried;
    if (!__atomic_load_n(&tried, __ATOMIC_ACQUIRE)) {
        void *opened = 0;
        for (int k = 0; libraries[k] && !opened; k++)
            opened = dlopen(libraries[k], RTLD_NOW | RTLD_GLOBAL);
        if (!opened && getenv("LOPT_CUDA_VERBOSE")) fprintf(stderr, "%s\n", dlerror());
        __atomic_store_n(&library, opened, __ATOMIC_RELEASE);
        __atomic_store_n(&tried, 1, __ATOMIC_RELEASE);
    }
    void *found = __atomic_load_n(&library, __ATOMIC_ACQUIRE);
    if (found) found = dlsym(found, names[i]);
    if (!found) found = strncmp(names[i], "cuGetError", 10) ? (void *)missing : (void *)describe;
    __atomic_store_n(&lopt_@ID@_table[i], found, __ATOMIC_RELEASE);
    return found;
}

/* Keeps all registers that carry arguments. On the stack: the index, the return address. */
__asm__(".text\n"
"lopt_@ID@_first:\n"
"  pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9; pushq %rax; pushq %rbp\n"
"  movq %rsp, %rbp\n  movq 64(%rbp), %rdi\n  subq $128, %rsp\n  andq $-16, %rsp\n"
"  movups %xmm0, 0(%rsp); movups %xmm1, 16(%rsp); movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)\n"
"  movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp)\n"
"  movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)\n"
"  call lopt_@ID@_resolve\n  movq %rax, %r11\n"
"  movups 0(%rsp), %xmm0; movups 16(%rsp), %xmm1; movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3\n"
"  movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5\n"
"  movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7\n"
"  movq %rbp, %rsp\n"
"  popq %rbp; popq %rax; popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi\n"
"  addq $8, %rsp\n  jmp *%r11\n");
"""

TRAMPOLINE = r"""
__asm__(".globl @NAME@\n.type @NAME@, @function\n@NAME@:\n"
"  movq lopt_@ID@_table+@OFFSET@(%rip), %r11\n  testq %r11, %r11\n  jz 1f\n  jmp *%r11\n"
"1: pushq $@INDEX@\n  jmp lopt_@ID@_first\n");
"""


def fill(text, values):
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def main(cudarc, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for library, (module, files, code) in LIBRARIES.items():
        declared = (cudarc / module / "sys.rs").read_text()
        names = sorted(set(re.findall(r"pub fn (cu\w+|nvrtc\w+)\s*\(", declared)))
        if not names:
            sys.exit(f"error: {cudarc / module / 'sys.rs'} declares no functions")
        quoted = [", ".join(f'"{name}"' for name in some) for some in (names, files)]
        values = {"ID": library, "COUNT": len(names), "CODE": code}
        text = fill(SOURCE, {**values, "NAMES": quoted[0], "LIBRARIES": quoted[1]})
        for index, name in enumerate(names):
            text += fill(TRAMPOLINE, {**values, "NAME": name, "INDEX": index, "OFFSET": 8 * index})
        source = folder / f"{library}.c"
        source.write_text(text)
        archive = folder / f"lib{library}.a"
        archive.unlink(missing_ok=True)
        subprocess.check_call(["gcc", "-O2", "-fPIC", "-c", source, "-o", source.with_suffix(".o")])
        subprocess.check_call(["ar", "rcs", archive, source.with_suffix(".o")])
        print(f"{archive}: {len(names)} functions", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
