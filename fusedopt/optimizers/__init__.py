"""One file for each optimizer: its arguments, its formula, its source. What they share is in fusedopt._core."""
