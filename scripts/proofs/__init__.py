"""Long proofs, run by hand with `scripts/prove NAME`. The suite runs short versions of them by the same code."""
