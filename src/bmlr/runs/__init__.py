"""What a run directory is: its files, their readers, runs grouped by their settings."""
