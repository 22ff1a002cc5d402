"""What `validate` stands on: the rows as one table read in batches, the rules, Great Expectations run over them."""
