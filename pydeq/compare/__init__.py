"""A preset in each engine and in plain Julia, side by side, from the same start."""
