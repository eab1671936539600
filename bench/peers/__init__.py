"""One consumer each, as a process: reads the records of a topic between two positions and prints what it cost."""
