"""Code shared by teachers: meanings of outputs, and the fit that makes relative depth metric."""
