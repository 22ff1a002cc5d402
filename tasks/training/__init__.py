"""Training: one notion of depth, a loop that can be stopped anywhere, checkpoints that are whole or absent."""
