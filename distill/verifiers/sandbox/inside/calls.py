"""In the box: load an answer, call its function on each input, send what it returns.

The answer's code can do anything in here, because what is sent is only data and is compared elsewhere. Frames are
``{"case": 0, "value": ..., "seconds": ...}``, or have ``"error"`` instead of the value.
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from typing import Any

from .data import decode, described, encode, read_all, send

RESULTS = 4


def main() -> None:
    given = json.loads(read_all(3))
    write, clock = send, time.process_time
    try:
        module = load(given["code"], given["module"])
    except BaseException as error:
        write(RESULTS, {"error": described(error)})
        os._exit(0)
    for index, (arguments, named) in enumerate(given["calls"]):
        started = clock()
        try:
            function = function_of(module, given["entry_point"])
            value = encode(function(*decode(arguments), **decode(named)))
            write(RESULTS, {"case": index, "value": value, "seconds": clock() - started})
        except BaseException as error:
            write(RESULTS, {"case": index, "error": described(error), "seconds": clock() - started})
    os._exit(0)  # does not wait for threads that the answer left behind


def load(code: str, name: str) -> types.ModuleType:
    """Run the code as a module that can be found by its name, as dataclasses and pickle require."""
    sys.set_int_max_str_digits(0)  # its CPU time is limited, and contest answers may be long
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, "answer.py", "exec"), module.__dict__)
    return module


def function_of(module: types.ModuleType, name: str) -> Any:
    """The method of a fresh ``Solution`` object, as some contest sites have it, or the function."""
    if hasattr(getattr(module, "Solution", None), name):
        return getattr(module.Solution(), name)
    if hasattr(module, name):
        return getattr(module, name)
    raise NameError(f"no function is called {name}")
