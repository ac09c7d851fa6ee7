"""What checks and tests work on: small real networks, real images of digits, and stand-ins that are sound."""
