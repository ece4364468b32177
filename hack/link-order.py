#!/usr/bin/env python3
"""Runs a program and writes down which of its functions it enters, in the order of their first use.

    hack/link-order.py --map MAP --out ORDER -- PROGRAM ARGUMENT...

MAP is LLD's map of the program (`-Wl,-Map=FILE,--no-demangle`): it names the functions also where the program itself does not. Each function
begins with a breakpoint, which goes away when it is first met; so the program runs at nearly its own pace. SIGTERM and
SIGINT are handed on to it. ORDER is what LLD's `--symbol-ordering-file` reads: one name a line, written when the program
ends. Only for x86-64 with Linux.
"""

import argparse
import ctypes
import os
import signal
import sys

BREAKPOINT = 0xCC
ALL_CHILDREN = 0x40000000  # __WALL
TRACE_ME, CONTINUE, GET_REGISTERS, SET_REGISTERS, SET_OPTIONS = 0, 7, 12, 13, 0x4200
TRACE_CLONE, TRACE_EXEC, EXIT_KILL = 1 << 3, 1 << 4, 1 << 20
REGISTERS, INSTRUCTION = 27, 16  # of user_regs_struct: how many, and which one points to the next instruction

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, pid, data=0):
    """One request; a thread that is gone is no error."""
    if libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        if number != 3:
            raise OSError(number, os.strerror(number))


def functions(path):
    """Address -> name of what the map has in .text. Of several names of the same code it takes one that lasts: some carry
    the number of a build."""
    names, inside = {}, False
    with open(path, encoding="utf-8", errors="replace") as lines:
        next(lines)
        for line in lines:
            # Four numbers of fixed width; then a section, or deeper a file, or deeper still a symbol.
            place, what = line[49:].rstrip("\n"), line[65:].rstrip("\n")
            if not place.startswith(" "):
                inside = place == ".text"
            elif inside and place.startswith(" " * 16) and int(line[34:42], 16) > 0:
                at = int(line[:16], 16)
                if at not in names or ".llvm." in names[at]:
                    names[at] = what
    return names


def stopped(pid, first=False):
    """Waits for a thread (any with 0): which, and the status of its stop; None when the program has ended."""
    while True:
        try:
            thread, status = os.waitpid(pid if first else -1, ALL_CHILDREN)
        except ChildProcessError:
            return None
        if os.WIFSTOPPED(status):
            return thread, status
        if thread == pid:
            return None


def start(command):
    pid = os.fork()
    if pid == 0:
        ptrace(TRACE_ME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.execvp(command[0], command)
    stopped(pid, first=True)
    ptrace(SET_OPTIONS, pid, TRACE_CLONE | TRACE_EXEC | EXIT_KILL)
    ptrace(CONTINUE, pid)
    stopped(pid, first=True)
    return pid


def loaded_at(pid):
    """Where the kernel put the program, whose own addresses begin at 0."""
    program = os.readlink(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip("\n").endswith(program))


def trace(command, names):
    """Runs the command to its end; the names of the functions it entered."""
    pid = start(command)
    base = loaded_at(pid)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    low, high = min(names), max(names) + 1
    code = os.pread(memory, high - low, base + low)
    with_breakpoints = bytearray(code)
    for at in names:
        with_breakpoints[at - low] = BREAKPOINT
    os.pwrite(memory, bytes(with_breakpoints), base + low)
    ptrace(CONTINUE, pid)
    met = {}
    registers = (ctypes.c_ulong * REGISTERS)()
    while (stop := stopped(pid)) is not None:
        thread, status = stop
        number, handed_on = os.WSTOPSIG(status), 0
        if status >> 16 == 0 and number == signal.SIGTRAP:
            ptrace(GET_REGISTERS, thread, ctypes.addressof(registers))
            at = registers[INSTRUCTION] - 1 - base
            if at in names:
                if at not in met:
                    met[at] = names[at]
                    os.pwrite(memory, code[at - low:at - low + 1], base + at)
                registers[INSTRUCTION] -= 1
                ptrace(SET_REGISTERS, thread, ctypes.addressof(registers))
        elif status >> 16 == 0 and number != signal.SIGSTOP:
            handed_on = number
        ptrace(CONTINUE, thread, handed_on)
    return list(met.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--map", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    names = functions(args.map)
    if not names:
        sys.exit(f"{args.map} names no functions: is it LLD's map of this program?")
    met = trace(args.command, names)
    with open(args.out, "w", encoding="utf-8") as out:
        out.writelines(name + "\n" for name in dict.fromkeys(met))
    print(f"{len(met)} of {len(names)} functions were entered")


if __name__ == "__main__":
    main()
