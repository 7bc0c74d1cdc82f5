#!/usr/bin/env python3
"""Writes a static library lib<NAME>.a whose functions open the real shared library at the first call and jump there (x86-64 Linux).

usage: import_library.py FOLDER NAME FILES ERROR < names of functions

FILES are shared libraries to try in order, separated by colons; where none can be opened every function returns ERROR. A program linked against it needs
no CUDA to start. Arguments pass through untouched: registers are saved around the lookup, and the stack is as the caller left it.
"""

import subprocess
import sys
from pathlib import Path

folder, name, files, error = sys.argv[1:]
functions = sys.stdin.read().split()
assert functions, f"no functions for lib{name}"
prefix = f"lazy_{name}"
registers = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax"]

# A slot holds the function's address once it is known; until then a call goes through `go` with the function's number in r11.
lines = [".text", f".hidden {prefix}_slots", f".hidden {prefix}_find"]
for number, function in enumerate(functions):
    lines += [f".globl {function}", f".type {function},@function", f"{function}:"]
    lines += [f"mov {prefix}_slots+{8 * number}(%rip),%r11", "test %r11,%r11", "je 1f", "jmp *%r11"]
    lines += [f"1: mov ${number},%r11d", f"jmp {prefix}_go", f".size {function},.-{function}"]
lines += [f"{prefix}_go:", "push %rbp", "mov %rsp,%rbp", "and $-16,%rsp", "sub $192,%rsp"]
lines += [f"mov %{register},{8 * i}(%rsp)" for i, register in enumerate(registers)]
lines += [f"movups %xmm{i},{64 + 16 * i}(%rsp)" for i in range(8)]
lines += ["mov %r11d,%edi", f"call {prefix}_find", "mov %rax,%r11"]
lines += [f"movups {64 + 16 * i}(%rsp),%xmm{i}" for i in range(8)]
lines += [f"mov {8 * i}(%rsp),%{register}" for i, register in enumerate(registers)]
lines += ["mov %rbp,%rsp", "pop %rbp", "jmp *%r11", '.section .note.GNU-stack,"",@progbits']

quoted = lambda names: ", ".join(f'"{name}"' for name in names)
source = f"""#include <dlfcn.h>
#include <stddef.h>
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN void* {prefix}_slots[{len(functions)}];
static const char* const names[] = {{{quoted(functions)}}};
static const char* const files[] = {{{quoted(files.split(":"))}}};
static int missing(void) {{ return {error}; }}
HIDDEN void* {prefix}_find(unsigned number) {{
  static void* library;
  for (size_t i = 0; i < sizeof files / sizeof *files && !library; i++) library = dlopen(files[i], RTLD_NOW | RTLD_GLOBAL);
  void* found = library ? dlsym(library, names[number]) : NULL;
  return {prefix}_slots[number] = found ? found : (void*)missing;
}}
"""

objects = []
for suffix, text in [("s", "\n".join(lines) + "\n"), ("c", source)]:
    path = Path(folder, f"{name}.{suffix}")
    path.write_text(text)
    objects.append(path.with_name(f"{name}_{suffix}.o"))
    subprocess.check_call(["gcc", "-O1", "-fPIC", "-c", path, "-o", objects[-1]])
archive = Path(folder, f"lib{name}.a")
archive.unlink(missing_ok=True)
subprocess.check_call(["ar", "rcs", archive, *objects])
