"""Ranks: starts and ends them, exchanges values between them, and watches for lost ones."""
