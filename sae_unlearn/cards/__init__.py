"""Model cards: templates, licenses, provenance, reports and pictures, for the cards of all artifacts."""
