"""The ``distill`` script and ``python -m distill``, which works whoever owns the script of that name."""

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
        # A signal that comes while Python takes down what torch has built finds nothing left to stop: it must not make
        # of a run that is done one that was killed. Here and not in `run`, whose caller may go on.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
