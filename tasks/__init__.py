"""How: one module per pipeline stage, and the packages they stand on. Knows neither Prefect nor DVC."""
