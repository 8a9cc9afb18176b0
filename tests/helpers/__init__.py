"""What test modules share; fixtures are in the conftest.py files."""
