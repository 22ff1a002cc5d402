"""What was forgotten: how it is measured (`suites`), and how it is judged (`rule`)."""
