"""What every stage made of one fixed tiny project, and under which version of the stage."""
