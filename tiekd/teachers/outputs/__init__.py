"""What teachers share: the meanings of outputs, and the fit that makes relative ones metric."""
