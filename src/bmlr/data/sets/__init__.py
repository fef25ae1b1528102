"""One file per data set, on what stored and generated ones have in common."""
