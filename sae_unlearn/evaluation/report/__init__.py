"""Reports: measured numbers with their intervals, tables, pictures and files."""
