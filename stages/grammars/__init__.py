"""Compiles grammars that constrain a text, and finds the token ids that they allow next.

The stages use llguidance only through this package. llguidance is one of SGLang's grammar backends. It compiles a
grammar in milliseconds, even for a vocabulary of 150,000 tokens. The reason is that llguidance computes a state of its
automata only when a text reaches this state. It also limits the work for one grammar, and the work for one mask (the
set of ids that are allowed next). SGLang's default backend, xgrammar, prepares every state for the whole vocabulary,
which takes seconds for an ordinary schema.
"""
