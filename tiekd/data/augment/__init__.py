"""What is drawn for a training sample, and what becomes of its pixels."""
