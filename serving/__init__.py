"""Scores requests with the newest version of the model, and follows new versions without a pause."""
