"""`python -m tests.mutants`."""

from tests.mutants.study import main

if __name__ == "__main__":
    main()
