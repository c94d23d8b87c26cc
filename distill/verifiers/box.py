"""The launcher: builds the box, enters it, and becomes the candidate's interpreter. Run as a script.

``python -I -S box.py`` with the settings as JSON in its one argument. Its descriptors: 0 the candidate's
standard input, 3 the payload for the program inside, 4 its results, 5 the report of how it ended. It
imports nothing of ours, so that it starts quickly, and has one thread, as namespaces demand.

The box: mount, pid, network, ipc, uts and user namespaces; a root of its own that holds the interpreter
read-only and an empty /tmp of limited size, no /proc, no /dev; rlimits; no new privileges; a seccomp
filter. Process 1 in there is ours, the candidate is process 2. Started by root, it turns into a
dedicated uid before anything of the candidate's runs, because kernel uid 0 stays dangerous even inside a
user namespace (measured: a full escape through core_pattern). Any step that fails ends it, with the
step's name in the report; nothing is ever run with less.
"""

import ctypes
import fcntl
import json
import os
import platform
import resource
import signal
import struct
import sys

UID = 61234
"""Whom the candidate runs as when the verifier is root; nobody else should own this uid."""

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PDEATHSIG, SECCOMP, NO_NEW_PRIVS = 1, 22, 38
REPORT = 5

DENIED = {
    "x86_64": (0xC000003E, 56, (435,), (
        41, 53, 101, 103, 135, 153, 155, 161, 163, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 212,
        246, 248, 249, 250, 256, 272, 279, 298, 300, 303, 304, 308, 310, 311, 312, 313, 317, 320, 321, 323,
    )),
    "aarch64": (0xC00000B7, 220, (435,), (
        198, 199, 117, 116, 92, 58, 41, 89, 51, 40, 39, 224, 225, 142, 161, 162, 105, 106, 60, 18, 104, 217, 218, 219,
        238, 97, 239, 241, 262, 264, 265, 268, 270, 271, 272, 273, 277, 294, 280, 282,
    )),
}  # fmt: skip
"""Audit architecture, `clone`, what does not exist (clone3), and what is refused: sockets, ptrace, syslog,
personality, vhangup, pivot_root, chroot, acct, mounts, swap, reboot, host names, modules, quotas, kexec, keys,
unshare, migrate_pages, perf, fanotify, file handles, setns, process_vm, kcmp, seccomp, bpf, userfaultfd."""
DENIED_EVERYWHERE = (425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 440, 442, 443, 447)
"""io_uring, the new mount interface, pidfd_getfd, process_madvise, quotactl_fd, memfd_secret."""

libc = ctypes.CDLL(None, use_errno=True)


def must(step: str, result: int) -> None:
    if result < 0:
        raise OSError(f"{step}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    must(f"mount {target}", libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None))


def main() -> None:
    settings = json.loads(sys.argv[1])
    die_with_parent()
    if os.getppid() != settings["parent"]:
        os._exit(1)
    place(settings["pipes"])
    try:
        enter(settings)
        if os.getppid() != settings["parent"]:  # it may have died while its death would not have been told
            os._exit(1)
        alive, mine = os.pipe()  # open for writing as long as this process lives
        first = os.fork()
        if first == 0:
            os.close(mine)
            be_first(settings, alive)
        os.close(REPORT)
        os.waitpid(first, 0)
    except OSError as error:
        report({"failed": str(error)})


def place(pipes: list[int]) -> None:
    """Move the pipes to descriptors 3, 4 and 5."""
    high = [fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 64) for pipe in pipes]
    for number, pipe in enumerate(high, 3):
        os.dup2(pipe, number)
    os.closerange(REPORT + 1, 4096)


def be_first(settings: dict, launcher: int) -> None:
    """Process 1 of the box. It is ours, so that the candidate cannot cut the string that ends the box.

    When it ends, the kernel ends everything in there; from inside it cannot be killed.
    """
    try:
        die_with_parent()
        if ended(launcher):  # before this process could be told: nobody would ever end it
            os._exit(1)
        os.close(launcher)
        candidate = os.fork()
        if candidate == 0:
            become_candidate(settings)
        gone = 0
        while gone != candidate:
            gone, status, usage = os.wait4(-1, 0)
        cpu = usage.ru_utime + usage.ru_stime
        report({"code": os.waitstatus_to_exitcode(status), "cpu": cpu, "kib": usage.ru_maxrss})
    except OSError as error:
        report({"failed": str(error)})
    os._exit(0)


def ended(pipe: int) -> bool:
    """Whether all who could write to ``pipe`` are gone. (In a new pid namespace `getppid` says 0 always.)"""
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def die_with_parent() -> None:
    must("prctl", libc.prctl(PDEATHSIG, signal.SIGKILL))


def report(message: dict[str, object]) -> None:
    os.write(REPORT, json.dumps(message).encode() + b"\n")


def enter(settings: dict) -> None:
    """Namespaces and the new root; afterwards this process is an ordinary user, and cannot be otherwise."""
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    everything = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    must("unshare", libc.unshare(everything if root else everything | NEWUSER))
    if not root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    change_root(settings)
    if root:
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
        # A user namespace of its own, so that the limit on processes counts this box alone.
        must("unshare user", libc.unshare(NEWUSER))
        die_with_parent()  # a change of uid forgets it
    if 0 in (*os.getresuid(), *os.getresgid()):
        raise OSError("still uid or gid 0")


def change_root(settings: dict) -> None:
    """A root with the interpreter in it, read-only, and an empty /tmp.

    It is put together over /proc, a directory that exists everywhere and is not needed any more.
    """
    top = "/proc"
    mount("none", "/", None, REC | PRIVATE)
    kept = [path for path in settings["visible"] if os.path.isdir(path) and not os.path.islink(path)]
    links = {path: os.readlink(path) for path in settings["visible"] if os.path.islink(path)}
    mount("box", top, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=256,mode=755")
    for path in kept:
        os.makedirs(top + path, mode=0o755)
        mount(path, top + path, None, BIND)
        locked = os.statvfs(path).f_flag & NOEXEC
        mount("none", top + path, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | locked)
    for path, target in links.items():
        os.symlink(target, top + path)
    os.makedirs(top + "/tmp", exist_ok=True)
    options = f"size={settings['disk_bytes']},nr_inodes={settings['inodes']},mode=1777"
    mount("tmp", top + "/tmp", "tmpfs", NOSUID | NODEV, options)
    mount("none", top, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir(top)
    must("pivot_root", libc.pivot_root(b".", b"."))
    must("umount2", libc.umount2(b".", 2))
    os.chdir("/tmp")


def become_candidate(settings: dict) -> None:
    try:
        os.setsid()
        for kind, most in settings["rlimits"].items():
            spare = kind == "RLIMIT_CPU"  # one second between the signal that says why and the one that kills
            resource.setrlimit(getattr(resource, kind), (most, most + spare))
        os.set_inheritable(REPORT, False)
        must("no_new_privs", libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
        filter_calls()
        arguments = [settings["python"], "-I", "-S", "-B", "-c", settings["program"]]
        os.execve(arguments[0], arguments, settings["environment"])
    except OSError as error:
        report({"failed": str(error)})
    os._exit(1)


def filter_calls() -> None:
    """Seccomp: a foreign architecture kills, namespaces through clone and the denied calls are refused."""
    machine = platform.machine()
    if machine not in DENIED:
        raise OSError(f"seccomp: no table of system calls for {machine}")
    architecture, clone, absent, denied = DENIED[machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, refuse, missing = 0x80000000, 0x7FFF0000, 0x50000 | 1, 0x50000 | 38
    namespaces = NEWNS | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET | 0x2000000
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]
    for number in (*denied, *DENIED_EVERYWHERE):
        code += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    for number in absent:
        code += [(equal, 0, 1, number), (answer, 0, 0, missing)]
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, namespaces), (answer, 0, 0, refuse)]
    code += [(answer, 0, 0, allow)]
    block = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(block))
    must("seccomp", libc.prctl(SECCOMP, 2, program, 0, 0))


if __name__ == "__main__":
    main()
