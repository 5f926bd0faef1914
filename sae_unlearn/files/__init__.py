"""Files and text: untrusted files, atomic saving, digests, the Hub, and output for a terminal."""
