"""What the server remembers: one SQLite file, held in memory for reads."""
