"""Ready-made sources, one file for each; `base` has the contract and finds them by name."""
