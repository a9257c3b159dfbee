"""The configuration: its schema, how it is loaded, and how its nodes become objects."""
