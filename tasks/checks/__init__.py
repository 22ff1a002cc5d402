"""What `check` measures, each measure with its words: what it says, the worst examples, what to do."""
