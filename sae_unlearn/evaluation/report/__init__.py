"""Reports: estimates with intervals, figures, files, tables, and plots."""
