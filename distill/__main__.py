"""``python -m distill``: always works, whoever owns the script called ``distill``."""

from distill.cli.main import main

if __name__ == "__main__":
    main()
