"""The `recd` command and what it needs to run the whole system on one machine."""
