"""Terms: further losses beside those of the domains; a file for each."""
