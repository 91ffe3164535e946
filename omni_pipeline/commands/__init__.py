"""The subcommands `config`, `plan` and `scale`, the options that subcommands share, and the display of the server's
start.

Code that parses options or displays results belongs in this package. The decisions behind the results belong in
`config` and `deployment`.
"""
