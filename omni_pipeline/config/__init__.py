"""What an operator may say: schema, flags, layers of precedence. Not: what follows from it (deployment)."""
