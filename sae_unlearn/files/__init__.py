"""Files that others may have written, files that are written whole, the Hub, and the terminal."""
