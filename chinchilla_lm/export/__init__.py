"""Shortened models in other people's formats."""
