"""The ``distill`` script and ``python -m distill``, which works whoever owns the script of that name."""

import sys

from distill.ownership import clash


def main() -> None:
    if wrong := clash():
        print(f"distill: {wrong}", file=sys.stderr)
        sys.exit(2)
    from distill.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
