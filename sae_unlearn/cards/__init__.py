"""Model cards: what the cards of all artefacts share."""
