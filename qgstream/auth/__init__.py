"""Authentication: credentials in, a principal with its grants out."""
