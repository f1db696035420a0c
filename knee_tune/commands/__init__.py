"""The composition root: one function per command. Nothing below knows how the pieces are joined."""
