"""What can be measured about a data set: pure functions on texts, labels and arrays.

Nothing here reads a file, knows a recipe or judges; `tasks/check.py` calls these and words the answers.
"""
