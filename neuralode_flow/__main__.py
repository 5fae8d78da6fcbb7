"""`python -m neuralode_flow` is the command `neuralode-flow`."""

from .app.main import main

if __name__ == "__main__":
    main()
