"""The paper's analyses of a minimum, and the LR range test."""
