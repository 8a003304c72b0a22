"""Starts and ends ranks, exchanges values between ranks, and detects lost ranks and machines."""
