"""Code shared by teachers: kinds of output, sigma, and the fit that makes relative depth metric."""
