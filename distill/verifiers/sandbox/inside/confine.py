"""Confine the candidate's process before it runs: limits, capabilities, files, system calls.

This is the same in every backend, and the last step of the setup. A step that fails ends the run, with its name in the
report. Only Landlock may be absent: it is a second wall around files that the box does not contain anyway, and older
kernels lack it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from typing import Any

from .kernel import (
    NEWCGROUP,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    NO_NEW_PRIVS,
    SECCOMP,
    libc,
    must,
)

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of the tables below, and seccomp's constant for the architecture."""

CLONE = (56, 220)
CLONE_THREAD = 0x10000
CLONE3 = 435
"""Reported as missing: its flags are behind a pointer that no filter can follow, and libc falls back to clone."""

FORKS = {"fork": (57, None), "vfork": (58, None)}

DENIED: dict[str, tuple[int | None, int | None]] = {
    # network, and objects that outlive a process: no limit counts shared memory that nobody maps
    "socket": (41, 198), "socketpair": (53, 199), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # namespaces, mounts, roots
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262), "lookup_dcookie": (212, 18),
    # large surfaces of the kernel that no honest answer needs
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "seccomp": (317, 277), "personality": (135, 92), "modify_ldt": (154, None),
    # the machine itself
    "syslog": (103, 116), "vhangup": (153, 58), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266),
}  # fmt: skip


def confine(limits: dict[str, Any], writable: str | None) -> None:
    """Confine this process. ``limits`` are those of `distill.verifiers.sandbox.Limits`.

    ``writable`` is the only directory that can be written to. It is None if this process has no root of its own
    (`unsafe`): then capabilities, files and system calls are not restricted.
    """
    for kind, most in _rlimits(limits).items():
        spare = kind == resource.RLIMIT_CPU  # a second between the signal that says why and the one that kills
        resource.setrlimit(kind, (most, most + spare))
    must("no_new_privs", libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    if writable is not None:
        _drop_capabilities()
        _restrict_files(writable)
        _filter_calls(forks=limits["processes"] > 1)


def _rlimits(limits: dict[str, Any]) -> dict[int, int]:
    return {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["disk_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["processes"] + limits["threads"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }


def _drop_capabilities() -> None:
    """Drop all capabilities: a new user namespace grants them, and there is no exec here that would clear them."""
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    must("capset", libc.capset(header, nothing))


def _restrict_files(writable: str) -> None:
    """Landlock: reading everywhere (the box's root), writing below ``writable``, no TCP, no signals out."""
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        if ctypes.get_errno() in (errno.ENOSYS, errno.EOPNOTSUPP):
            return
        must("landlock", version)
    files = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    parts = [files, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    attributes = struct.pack("QQQ", *parts)[: 8 * (1 + (version >= 4) + (version >= 6))]
    rules = must("landlock ruleset", libc.syscall(444, attributes, ctypes.c_size_t(len(attributes)), 0))
    execute, read_file, read_directory = 1, 4, 8
    for path, allowed in (("/", execute | read_file | read_directory), (writable, files)):
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        must("landlock rule", libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, directory), 0))
        os.close(directory)
    must("landlock", libc.syscall(446, rules, 0))
    os.close(rules)


def _filter_calls(forks: bool) -> None:
    """Seccomp: a foreign architecture kills the process, denied calls are refused, clone only makes threads.

    Without ``forks`` there is one process, so its limits on memory and CPU bound the whole run.
    """
    if platform.machine() not in MACHINES:
        raise OSError(f"seccomp: no table of system calls for {platform.machine()}")
    column, architecture = MACHINES[platform.machine()]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, refuse, missing = 0x80000000, 0x7FFF0000, 0x50000 | 1, 0x50000 | 38
    namespaces = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]
    for numbers in (DENIED if forks else DENIED | FORKS).values():
        if (number := numbers[column]) is not None:
            code += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    code += [(equal, 0, 1, CLONE3), (answer, 0, 0, missing)]
    code += [(equal, 0, 3 if forks else 5, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, namespaces)]
    code += [(answer, 0, 0, refuse)]
    code += [(any_bit, 1, 0, CLONE_THREAD), (answer, 0, 0, refuse)] if not forks else []
    code += [(answer, 0, 0, allow)]
    block = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(block))
    must("seccomp", libc.prctl(SECCOMP, 2, program, 0, 0))
