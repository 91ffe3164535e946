"""The subcommands `config` and `plan`, the options that all subcommands share, and the display of a start.

Code that parses options or displays results belongs in this package. The decisions behind the results belong in
`config` and `deployment`.
"""
