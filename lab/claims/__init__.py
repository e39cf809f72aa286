"""One script a claim: what the documentation says of the program, measured. ``python -m lab.claims.NAME --help``."""
