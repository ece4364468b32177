"""The warm parent of functions' processes: told over its standard input, it forks a sandboxed child for each instance.

It is started as root, has imported the runner and what code commonly imports, and lives in a root directory of its own
that holds nothing of the machine but programs and libraries, read-only. It stays single-threaded, because only then a fork
is safe. It never runs anybody's code: a child has given up every privilege before it loads a line.

Lines of JSON come in ({"setup": ...} first, then {"id": ..., ...} to start and {"stop": id}) and go out ({"id", "status"}
of children that ended). When the input ends, it ends, and the kernel ends its children with it.
"""

import sys

sys.path.insert(0, sys.argv[1])

import ctypes
import fcntl
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import struct

import runner

# What functions commonly import, once for all of them. Nothing that starts a thread.
import base64, collections, copy, csv, dataclasses, datetime, decimal, enum, functools, hashlib, hmac, itertools, logging, math  # noqa: E401,F401,E402
import random, re, statistics, string, tempfile, time, typing, uuid  # noqa: E401,F401,E402

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

libc = ctypes.CDLL(None, use_errno=True)


def sure(result, what):
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, "%s: %s" % (what, os.strerror(code)))


def mount(source, target, kind=None, flags=0, data=None):
    text = [v.encode() if v is not None else None for v in (source, target, kind, data)]
    sure(libc.mount(text[0], text[1], text[2], ctypes.c_ulong(flags), text[3]), "mount %s" % target)


def bind(source, target, extra=0):
    """A read-only bind mount. Flags take effect only in a second step."""
    mount(source, target, None, BIND | REC)
    mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | extra)


# --- the parent's own root ---------------------------------------------------------------------------------------------

def set_up(order):
    """Builds the root directory that all children share, and goes there."""
    sure(libc.unshare(NEWNS), "unshare")
    mount(None, "/", None, REC | PRIVATE)
    root = order["root"]
    mount("skiff", root, "tmpfs", NOSUID, "size=16m,mode=755")
    for name in ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink("/" + name):
            os.symlink(os.readlink("/" + name), os.path.join(root, name))
        elif os.path.isdir("/" + name):
            os.mkdir(os.path.join(root, name))
            bind("/" + name, os.path.join(root, name), NODEV)
    # A language that does not live in /usr is there with its own directory.
    for place in order["prefixes"]:
        if not (place + "/").startswith("/usr/") and place != "/":
            os.makedirs(root + place)
            bind(place, root + place, NODEV)
    for name in ("etc", "dev", "proc", "tmp", "function", "packages", "skiff", "opt", "old"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    for name in ("ld.so.cache", "localtime", "nsswitch.conf", "mime.types"):
        if os.path.isfile("/etc/" + name):
            with open("/etc/" + name, "rb") as source, open(os.path.join(root, "etc", name), "wb") as copy_:
                copy_.write(source.read())
    for name in ("ssl", "alternatives"):
        if os.path.isdir("/etc/" + name):
            os.mkdir(os.path.join(root, "etc", name))
            bind("/etc/" + name, os.path.join(root, "etc", name), NODEV)
    for name, text in (("passwd", "root:x:0:0::/:/bin/false\nfunction:x:65534:65534::/tmp:/bin/sh\n"),
                       ("group", "root:x:0:\nfunction:x:65534:\n"), ("hosts", "127.0.0.1 localhost\n::1 localhost\n")):
        with open(os.path.join(root, "etc", name), "w") as file:
            file.write(text)
    for name in ("null", "zero", "full", "random", "urandom"):
        path = os.path.join(root, "dev", name)
        open(path, "w").close()
        mount("/dev/" + name, path, None, BIND)
    os.symlink("/proc/self/fd", os.path.join(root, "dev/fd"))
    with open(os.path.join(order["lib"], "runner.js")) as source, open(os.path.join(root, "opt/runner.js"), "w") as copy_:
        copy_.write(source.read())
    # What children need while they are made, and lose before they run anything: all below one mount.
    mount("skiff", root + "/skiff", "tmpfs", NOSUID | NODEV | NOEXEC, "size=1m,mode=700")
    for name in ("code", "packages", "run"):
        os.mkdir(root + "/skiff/" + name)
        mount(order[name], root + "/skiff/" + name, None, BIND)
    os.mkdir(root + "/skiff/cgroup")
    for name, path in order["cgroups"].items():
        os.mkdir(root + "/skiff/cgroup/" + name)
        mount(path, root + "/skiff/cgroup/" + name, None, BIND)
    os.chdir(root)
    number = PIVOT_ROOT[platform.machine()]
    sure(libc.syscall(ctypes.c_long(number), b".", b"old"), "pivot_root")
    os.chdir("/")
    # Old files stay reachable until here: loading lazily what ctypes needs must have happened.
    sure(libc.umount2(b"/old", DETACH), "umount")
    os.rmdir("/old")
    mount(None, "/", None, REMOUNT | RDONLY | NOSUID)


# --- a child -----------------------------------------------------------------------------------------------------------

def child(order):
    """Becomes an instance. Never returns."""
    ready = -1
    try:
        run = "/skiff/run/%s/" % order["id"]
        ready = end(run + "ready", os.O_WRONLY)
        os.write(ready, b"{}\n")  # it runs
        log = end(run + "log", os.O_WRONLY)
        null = os.open("/dev/null", os.O_RDONLY)
        stdin = end(run + "order", os.O_RDONLY) if "exec" in order else null
        os.dup2(stdin, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # Joined as root and before anything is loaded, so that everything counts.
        for name in os.listdir("/skiff/cgroup"):
            with open("/skiff/cgroup/%s/%s/cgroup.procs" % (name, order["id"]), "w") as file:
                file.write("0")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(run + "s")
        listener.listen(1024)
        sandbox(order)
        restrict(order)
        if "exec" in order:
            # Descriptors as runner.js knows them: 3 tells the outcome, 4 is the listener.
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (ready, listener.fileno())]
            os.closerange(3, 10)
            os.dup2(high[0], 3, inheritable=True)
            os.dup2(high[1], 4, inheritable=True)
            os.execve(order["exec"][0], order["exec"], {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"})
        ready, listener = keep(ready, listener)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv[:] = ["function"]
        # New ones: the old remember that they were files with positions, which pipes have not.
        for name, number in (("stdout", 1), ("stderr", 2)):
            stream = open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)
        sys.stdin = sys.__stdin__ = open(0, closefd=False)
        sys.path[:] = [p for p in sys.path if p != LIB]
        if os.listdir("/packages"):
            sys.path.append("/packages")

        def loaded(problem):
            os.write(ready, json.dumps({"problem": problem}).encode() + b"\n")
            os.close(ready)

        runner.run(os.environ, listener, loaded)
        os._exit(0)
    except BaseException as error:
        try:
            os.write(ready, json.dumps({"fault": "%s: %s" % (type(error).__name__, error)}).encode() + b"\n")
        finally:
            os._exit(70)


def end(path, way):
    """Opens our end of a pipe. The other was opened before the order: if it is closed, the host is gone, and to wait for it
    would be for ever."""
    fd = os.open(path, way | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    return fd


def keep(ready, listener):
    """Closes every descriptor but these: what the parent holds is not the child's."""
    number = listener.detach()
    first, second = sorted((ready, number))
    os.closerange(3, first)
    os.closerange(first + 1, second)
    os.closerange(second + 1, 256)
    return ready, socket.socket(fileno=number)


def sandbox(order):
    sure(libc.unshare(NEWNS | NEWIPC | NEWUTS | NEWNET), "unshare")
    if order.get("packages"):
        bind("/skiff/packages/" + order["packages"], "/packages", NODEV)
    # Of an instance that was started ahead, the code comes later, into a directory of its own.
    code = "/skiff/run/%s/code" % order["id"] if "exec" in order else "/skiff/code/" + order["code"]
    bind(code, "/function", NODEV)
    mount("tmp", "/tmp", "tmpfs", NOSUID | NODEV, "size=%d,mode=1777" % order["tmp"])
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC, "hidepid=2")
    sure(libc.umount2(b"/skiff", DETACH), "umount")
    os.chdir("/function")
    socket.sethostname(order["hostname"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))  # loopback up


def restrict(order):
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, order["files"]), (resource.RLIMIT_NPROC, order["pids"])]
    if order.get("address_space"):
        limits.append((resource.RLIMIT_AS, order["address_space"]))
    for limit, value in limits:
        resource.setrlimit(limit, (value, value))
    number = 0
    while libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    os.setgroups([])
    os.setresgid(order["uid"], order["uid"], order["uid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    sure(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # After the change of user, which would undo it.
    sure(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    os.umask(0o022)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGPIPE else signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


# --- the loop ----------------------------------------------------------------------------------------------------------

class Parent:
    def __init__(self):
        self.control = socket.socket(fileno=os.dup(0))
        self.children = {}
        self.own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY)
        self.wake, wake = socket.socketpair()
        self.wake.setblocking(False)
        wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self.wake_end = wake

    def tell(self, **message):
        self.control.sendall(json.dumps(message).encode() + b"\n")

    def loop(self):
        buffer = b""
        while True:
            readable, _, _ = select.select([self.control, self.wake], [], [])
            if self.wake in readable:
                self.wake.recv(4096)
                self.reap()
            if self.control in readable:
                data = self.control.recv(1 << 20)
                if not data:
                    os._exit(0)
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line))

    def obey(self, order):
        if "setup" in order:
            set_up(order["setup"])
            gc.collect()
            gc.freeze()  # what is shared stays shared: a child's collections do not touch it
            self.tell(ready=True)
        elif "stop" in order:
            for pid, id_ in self.children.items():
                if id_ == order["stop"]:
                    os.kill(pid, signal.SIGKILL)
        else:
            self.start(order)

    def start(self, order):
        try:
            # A process may enter a new namespace for its children only from its own.
            sure(libc.setns(self.own_pids, NEWPID), "setns")
            sure(libc.unshare(NEWPID), "unshare")
            pid = os.fork()
        except OSError as error:
            self.tell(id=order["id"], fault=str(error))
            return
        if pid == 0:
            child(order)
        self.children[pid] = order["id"]

    def reap(self):
        while self.children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            id_ = self.children.pop(pid, None)
            if id_ is not None:
                signaled = os.WIFSIGNALED(status)
                self.tell(id=id_, status=os.WTERMSIG(status) if signaled else os.WEXITSTATUS(status), signal=signaled)


LIB = sys.argv[1]
Parent().loop()
