"""Commands that measure: each prints a table, then one line of JSON. Never run as tests."""
