"""Programs that want something else than to answer, and a run of all of them against one backend.

Run as a script it prints one JSON object: what each program came to, what was written where it must not be, what
is still running, and whether an honest program is judged correct afterwards. So the same list runs as any user.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ADD = {"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, {"args": [-1, 1], "expected": 0}]}
SCRIPT = {"entry_point": "add", "asserts": ["assert add(2, 3) == sum([2, 3])", "assert add(-1, 1) == sum([0])"]}
HONEST = "def add(a, b):\n    return a + b\n"
WRONG = "\ndef add(a, b):\n    return 7\n"

QUIET = "def tried(act):\n    try: return act()\n    except BaseException: pass\n"
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

RUN = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "memory bomb": "x = b'x' * (1 << 40)",
    "slow memory bomb": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "loop that ignores signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "sleep": "import time\ntime.sleep(1e6)",
    "read for ever": "import os\nr, w = os.pipe()\nos.read(r, 1)",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "endless output": "while True:\n    print('x' * 100000)",
    "endless results": "import os\nwhile True:\n    os.write(4, b'x' * 60000)",
    "endless blank results": "import os\nwhile True:\n    os.write(4, b'\\n' * 60000)",
    "threads": "import threading, time\nfor _ in range(1000):\n    threading.Thread(target=time.sleep, args=(99,)).start()",
    "leave before the tests": "import os\nos._exit(0)",
    "exit in words": "import sys, atexit\natexit.register(lambda: print('1.0 PASS'))\nsys.exit(0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "stack overflow": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "abort": "import os\nos.abort()",
    "kill everything": "import os\nos.kill(-1, 9)" + WRONG,
    "kill process 1": "import os, time\nos.kill(1, 9)\ntime.sleep(0.2)\nraise SystemExit",
    "become another program": "import os\nos.execv('/bin/sh', ['sh', '-c', 'while :; do :; done'])",
    "terminal escapes": "raise ValueError('\\x1b[2J\\x00 oops')",
    "an exception that fails": "class E(Exception):\n    def __str__(self): raise E\nraise E",
    "no syntax": "def add(a, b) return",
    "NUL": "x = 1\0",
    "deep brackets": "(" * 5000 + ")" * 5000,
    "huge constant": "x = 10 ** 10 ** 10",
}
CHEAT = {
    "equal to everything": "class E(int):\n    def __eq__(self, o): return True\ndef add(a, b): return E(7)",
    "a difference of nothing": "class E(float):\n    def __sub__(self, o): return 0.0\ndef add(a, b): return E(7)",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{}'\njson.loads = lambda *a: {}" + WRONG,
    "patched builtins": "import builtins\nbuiltins.sum = lambda *a: 7\nbuiltins.isinstance = lambda *a: True" + WRONG,
    "patched codec": "import sys\nfor m in list(sys.modules.values()):\n"
    "    if getattr(m, '__name__', '').startswith('inside'): m.__dict__.clear()" + WRONG,
    "forged frames": 'import os\nos.write(4, b\'{"case": 0, "value": {"int": "0x5"}}\\n\' * 2)\n' + WRONG,
    "forged rows": 'import os\nos.write(4, b\'{"rows": [["a", true, ""]], "claims": false}\')\nos._exit(0)',
    "forged replies": 'import os\nos.write(7, b\'{"names": ["add"], "value": {"int": "0x5"}}\\n\' * 9)\nos._exit(0)',
    "data of no kind": 'import os\nos.write(4, b\'{"case": 0, "value": [5]}\\n\')\nos._exit(0)',
    "half a number": 'import os\nos.write(4, b\'{"case": 0, "value": {"complex": []}}\\n\')\nos._exit(0)',
    "division by zero": 'import os\nos.write(4, b\'{"case": 0, "value": {"Fraction": "1/0"}}\\n\')\nos._exit(0)',
    "deep frame": "import os\nos.write(4, b'[' * 100000 + b'\\n')\nos._exit(0)",
    "deep result": "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "giant integer": "def add(a, b): return 10 ** 3000000",
    "not a number": "def add(a, b): return float('nan')",
    "a class for the function": "class add:\n    def __init__(self, a, b): pass\n    def __eq__(self, o): return True",
    "look for the answers": "import gc, sys\ndef add(a, b):\n"
    "    seen = [o for o in gc.get_objects() if type(o) is dict and 'expected' in o]\n"
    "    return seen[0]['expected'] if seen else sys._getframe(1).f_locals.get('expected')",
    "read the parent": "import os\ndef add(a, b): return open(f'/proc/{os.getppid()}/environ').read()",
    "wrong": "def add(a, b): return a - b",
    "no such function": "def sub(a, b): return a - b",
}
HARM = {
    "write everywhere": "import os\nfor d in PLACES:\n    tried(lambda: open(d + '/CANARY', 'w').write('x'))",
    "write by system call": LIBC + "for d in PLACES:\n    libc.open((d + '/CANARY').encode(), 0o101, 0o644)",
    "link out": "import os\nfor d in PLACES:\n    tried(lambda: os.symlink(d + '/CANARY', '/tmp/l'))\n"
    "    tried(lambda: open('/tmp/l', 'w').write('x'))\n    tried(lambda: os.link('/tmp/l', d + '/CANARY'))",
    "make a FIFO and a device": "import os\nfor d in PLACES:\n    tried(lambda: os.mkfifo(d + '/CANARY'))\n"
    "    tried(lambda: os.mknod(d + '/CANARY', 0o60666, os.makedev(8, 0)))",
    "leave code for the next run": "import os, sys\nfor d in (*sys.path, '/tmp', os.path.dirname(os.__file__)):\n"
    "    for n in ('sitecustomize.py', 'json.py', 'x.pth'):\n"
    "        tried(lambda: open(d + '/' + n, 'w').write('import os; os._exit(0)'))",
    "delete files": "import os, shutil\nfor d in PLACES: tried(lambda: shutil.rmtree(d))\ntried(lambda: os.remove(os.__file__))",
    "fill the disk": "for n in range(100): tried(lambda: open(f'/tmp/{n}', 'wb').write(bytes(1 << 22)))",
    "core pattern": "tried(lambda: open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'))",
    "mount proc": LIBC + "libc.mount(b'p', b'/tmp', b'proc', 0, None)\n"
    "tried(lambda: open('/tmp/sys/kernel/core_pattern', 'w').write('|/tmp/x'))",
    "sockets": "import socket\nfor family in (1, 2, 10, 16, 17, 38, 40):\n    tried(lambda: socket.socket(family))",
    "shared memory that nobody maps": LIBC
    + "import sys\nfor n in range(64):\n    i = libc.shmget(0, 1 << 27, 0o1777)\n"
    "    if i < 0: break\n    a = libc.shmat(i, None, 0)",
    "a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1e6)",
    "hide from the parent's death": LIBC + "import time\nlibc.prctl(1, 0)\ntime.sleep(1e6)",
}


def harmful() -> dict[str, str]:
    """Name to program; they return a wrong answer afterwards."""
    name = f"canary-{secrets.token_hex(8)}"
    places = f"PLACES = {places_outside()!r}\n"
    return {key: QUIET + places + code.replace("CANARY", name) + WRONG for key, code in HARM.items()}


def places_outside() -> list[str]:
    return sorted({os.path.expanduser("~"), "/tmp", tempfile.gettempdir(), "/var/tmp", "/dev/shm", os.getcwd(), "/"})


def canaries() -> list[str]:
    return [str(found) for place in places_outside() for found in Path(place).glob("canary-*")]


def running() -> list[str]:
    """Command lines of what this process's server has made and is still there."""
    mine, found = (str(os.getpid()), f'"verifier": {os.getpid()},'), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):
            continue
        if words and ((words[-1] == mine[0] and "inside" in " ".join(words)) or mine[1] in words[-1]):
            found.append(" ".join(words)[:200])
    return found


def run(backend: str, cheats: bool = False) -> dict[str, Any]:
    """Run the programs in a backend. ``cheats`` are against our own code in the box, the same in every one."""
    from distill.types import Problem
    from distill.verifiers import build, judge, sandbox

    code = build({"code": {"sandbox": backend, "cpu_seconds": 1, "wall_seconds": 1.5}})
    kernel = Path("/proc/sys/kernel/core_pattern").read_text()

    def verdict(reference: object, program: str) -> tuple[str, str, str]:
        problem = Problem("p", "?", json.dumps(reference), "code", "test")
        found = judge(code, problem, f"```python\n{program}\n```")
        return found.outcome.value, found.reason, found.evidence.get("sandbox", backend)

    tasks = [(name, ADD, program) for name, program in (RUN | harmful()).items()]
    for name, program in CHEAT.items() if cheats else ():
        tasks += [(name, ADD, program), (f"{name} (script)", SCRIPT, program)]
    with ThreadPoolExecutor(4) as pool:
        verdicts = dict(zip((t[0] for t in tasks), pool.map(lambda t: verdict(*t[1:]), tasks), strict=True))
    honest = [verdict(reference, HONEST) for reference in (ADD, SCRIPT)]
    sandbox.close()
    intact = kernel == Path("/proc/sys/kernel/core_pattern").read_text()
    return {"verdicts": verdicts, "written": canaries(), "running": running(), "honest": honest, "intact": intact}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))
