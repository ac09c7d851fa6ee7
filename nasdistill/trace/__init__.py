"""Sites and traces: reading signals out of any model."""
