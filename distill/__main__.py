"""Entry point of the ``distill`` script and of ``python -m distill``.

The latter works even if another distribution has installed a script called ``distill``.
"""

import signal
import sys

from distill.ownership import clash


def main() -> None:
    if wrong := clash():
        print(f"distill: {wrong}", file=sys.stderr)
        sys.exit(2)
    from distill.cli.main import main as run

    try:
        run()
    finally:
        # The run is over. A signal that arrives while Python tears down torch must not turn its exit code into that of
        # a killed process. This is done here and not in `run`, because callers of `run` may go on.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
